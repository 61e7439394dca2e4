"""The seam between a problem and the turns that are taken on it."""

from collections.abc import Sequence
from typing import Protocol

from tinsmith.errors import TinsmithError
from tinsmith.rollouts import Sampler
from tinsmith.tasks import Task
from tinsmith.types import Group, Problem


class Paradigm(Protocol):
    """A protocol of interaction: its speakers, and how a problem is played."""

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names of the policy's speakers, by which rewards are keyed; all of them learn."""
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


def num_rollouts(paradigm: Paradigm, samples_per_problem: int) -> int:
    """The rollouts of a group: each gives one sample for each of the policy's speakers."""
    num_speakers = len(paradigm.speakers)
    if samples_per_problem % num_speakers:
        raise TinsmithError(
            f"samples_per_problem must be a multiple of {num_speakers}, because the paradigm has"
            f" that many speakers, got {samples_per_problem}"
        )
    return samples_per_problem // num_speakers
