"""The seam between a problem and the turns that are taken on it."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from tinsmith.errors import TinsmithError
from tinsmith.opponents import Snapshots
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


@runtime_checkable
class Trained(Paradigm, Protocol):
    """A paradigm that is not trained as it is evaluated."""

    def in_training(self, snapshots: Snapshots | None) -> Paradigm:
        """As a stage plays it: against snapshots of the policy, or, where there are none, against
        the policy itself. Made, a paradigm is what evaluations play."""
        ...


def checked(
    groups: list[Group], paradigm: Paradigm, problems: Sequence[Problem], num_rollouts: int
) -> list[Group]:
    """What a paradigm made of problems; TinsmithError where it is not what it has to be."""
    fault = next(_faults(paradigm, problems, num_rollouts, groups), None)
    if fault is not None:
        raise TinsmithError(f"play of the paradigm {type(paradigm).__name__} must give {fault}")
    return groups


def _faults(
    paradigm: Paradigm, problems: Sequence[Problem], num_rollouts: int, groups: Sequence[Group]
) -> Iterator[str]:
    found = [group.problem.id for group in groups]
    if found != [problem.id for problem in problems]:
        yield f"a group for each of {len(problems)} problems, in order, got {len(groups)} groups"
    for group in groups:
        if len(group.rollouts) != num_rollouts:
            yield f"groups of {num_rollouts} rollouts, got one of {len(group.rollouts)}"
        for rollout in group.rollouts:
            if set(rollout.rewards) != set(paradigm.speakers):
                yield (
                    f"a reward for each of its speakers, {', '.join(paradigm.speakers)}, got"
                    f" rewards for {', '.join(rollout.rewards) or 'none'}"
                )
            silent = set(paradigm.speakers) - {turn.speaker for turn in rollout.turns}
            if silent:
                yield f"a turn for each of its speakers, got none for {', '.join(sorted(silent))}"


def num_rollouts(paradigm: Paradigm, samples_per_problem: int) -> int:
    """The rollouts of a group: each gives one sample for each of the policy's speakers."""
    num_speakers = len(paradigm.speakers)
    if samples_per_problem % num_speakers:
        raise TinsmithError(
            f"samples_per_problem must be a multiple of {num_speakers}, because the paradigm has"
            f" that many speakers, got {samples_per_problem}"
        )
    return samples_per_problem // num_speakers
