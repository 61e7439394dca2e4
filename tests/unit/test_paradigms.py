"""What a paradigm has to give, whoever wrote it."""

from typing import Any

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.paradigms import checked
from tinsmith.types import Completion, Group, Problem, Reward, Rollout, Turn

PROBLEMS = (Problem("a", "1+1", "2"), Problem("b", "1+2", "3"))
REWARD = Reward(1.0, {"correct": 1.0}, is_right=True)
TURN = Turn("policy", (1,), Completion((2,), (-0.5,), "2", is_finished=True))


def group(problem: Problem, size: int = 2, **changes: Any) -> Group:
    values = {"turns": (TURN,), "rewards": {"policy": REWARD}} | changes
    return Group(problem, tuple(Rollout(problem, **values) for _ in range(size)))


class Talk:
    """A paradigm with one speaker, who is not asked here."""

    speakers = ("policy",)

    play: Any = None


def check(groups: list[Group]) -> list[Group]:
    return checked(groups, Talk(), PROBLEMS, 2)


def test_what_is_whole_is_handed_on() -> None:
    groups = [group(problem) for problem in PROBLEMS]
    assert check(groups) == groups


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([group(PROBLEMS[0])], "a group for each of 2 problems, in order, got 1 groups"),
        ([group(p) for p in PROBLEMS[::-1]], "a group for each of 2 problems, in order, got 2"),
        ([group(p, 3) for p in PROBLEMS], "groups of 2 rollouts, got one of 3"),
        ([group(p, rewards={}) for p in PROBLEMS], "its speakers, policy, got rewards for none"),
        ([group(p, turns=()) for p in PROBLEMS], "a turn for each .*, got none for policy"),
    ],
)
def test_what_is_not_whole_is_refused_with_the_paradigms_name(
    groups: list[Group], said: str
) -> None:
    with pytest.raises(TinsmithError, match=f"play of the paradigm Talk must give .*{said}"):
        check(groups)
