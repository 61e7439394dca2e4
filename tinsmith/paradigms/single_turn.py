"""Single turn: one prompt, one completion, one reward."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.rollouts import Sampler
from tinsmith.tasks import Task
from tinsmith.types import Completion, Group, Problem, Rollout, Turn

SPEAKER = "policy"


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """The policy answers the task's prompt once."""

    speakers: tuple[str, ...] = (SPEAKER,)

    @classmethod
    def from_config(cls, section: config.SingleTurn, frozen: FrozenModels | None) -> "SingleTurn":
        return cls()

    def play(
        self,
        task: Task,
        problems: Sequence[Problem],
        num_rollouts: int,
        sampler: Sampler,
        seeds: Sequence[int],
    ) -> list[Group]:
        prompts = [task.prompt(problem) for problem in problems]
        pending = [
            sampler.submit(prompt, num_rollouts, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [
            Group(problem, tuple(_rollout(task, problem, prompt, c) for c in completions()))
            for problem, prompt, completions in zip(problems, prompts, pending, strict=True)
        ]


def _rollout(
    task: Task, problem: Problem, prompt: tuple[int, ...], completion: Completion
) -> Rollout:
    turn = Turn(SPEAKER, prompt, completion)
    return Rollout(problem, (turn,), {SPEAKER: task.reward(problem, completion)})
