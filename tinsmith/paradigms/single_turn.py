"""Single turn: one prompt, one completion, one reward."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.rollouts import Sampler, as_answered
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
        groups: dict[int, Group] = {}
        for p in as_answered(pending):
            groups[p] = _group(task, problems[p], prompts[p], pending[p]())
        return [groups[p] for p in range(len(problems))]


def _group(
    task: Task, problem: Problem, prompt: tuple[int, ...], completions: Sequence[Completion]
) -> Group:
    rollouts = (
        Rollout(
            problem,
            (Turn(SPEAKER, prompt, completion),),
            {SPEAKER: task.reward(problem, completion)},
        )
        for completion in completions
    )
    return Group(problem, tuple(rollouts))
