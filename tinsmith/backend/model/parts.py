"""Where parts of sequences lie among packed tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part of a sequence lies among the packed tokens, and the prompt before it, which
    other parts may share (none: `prompt` is empty)."""

    own: slice
    prompt: slice

    @property
    def num_queries(self) -> int:
        return self.own.stop - self.own.start

    @property
    def first_position(self) -> int:
        return self.prompt.stop - self.prompt.start

    @property
    def num_keys(self) -> int:
        return self.first_position + self.num_queries
