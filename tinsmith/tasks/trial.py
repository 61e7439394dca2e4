"""A trial of every problem before the first is sampled: bad problems stop a job at its start."""

from collections.abc import Sequence

from tinsmith.errors import TinsmithError
from tinsmith.tasks.task import Task
from tinsmith.types import Completion, Problem, Reward

TOLERANCE = 1e-6


def try_problems(task: Task, problems: Sequence[Problem]) -> None:
    """Ask every problem and grade an empty completion of it, or raise what the task refuses."""
    nothing = Completion(task.chat.stop_token_ids[:1], (0.0,), "", is_finished=True)
    for problem in problems:
        for asked, what in ((task.prompt(problem), "prompt"), (task.question(problem), "question")):
            if not asked:
                raise TinsmithError(f"the problem {problem.id} must have a {what}, but it is empty")
        check_reward(task.reward(problem, nothing), problem)


def check_reward(reward: Reward, problem: Problem) -> None:
    """Refuse a reward that is not the sum of its terms."""
    total = sum(reward.terms.values())
    if not abs(reward.value - total) <= TOLERANCE:  # not a number is refused, too
        raise TinsmithError(
            f"the reward of the problem {problem.id} must be the sum of its terms,"
            f" {dict(reward.terms)}, got {reward.value}"
        )
