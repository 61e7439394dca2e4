"""The seam between a problem and the turns that are taken on it."""

from collections.abc import Sequence
from typing import Protocol

from tinsmith.rollouts import Sampler
from tinsmith.tasks import Task
from tinsmith.types import Group, Problem


class Paradigm(Protocol):
    """A protocol of interaction: its speakers, and how a problem is played."""

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names by which turns and rewards are keyed."""
        ...

    def play(
        self,
        task: Task,
        problems: Sequence[Problem],
        num_rollouts: int,
        sampler: Sampler,
        seeds: Sequence[int],
    ) -> list[Group]:
        """One group per problem, in order; the requests of a round are all sent before any is
        awaited, and everything that is drawn for a problem derives from its seed."""
        ...
