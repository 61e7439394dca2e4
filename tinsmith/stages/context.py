"""What every stage is given, and the few things that all of them do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tinker

from tinsmith import config
from tinsmith.paradigms import Paradigm, checked, num_rollouts
from tinsmith.problems import draw_problems
from tinsmith.randomness import derive_seed
from tinsmith.rollouts import Sampler
from tinsmith.tasks import Task
from tinsmith.types import Group, Problem


@dataclass(frozen=True, slots=True)
class StageContext:
    """A stage's surroundings: whom it trains, on what, and from which seed.

    `reference_client` samples from the policy that the stage started with.
    """

    name: str
    seed: int
    learning_rate: float
    training_client: tinker.TrainingClient
    reference_client: Callable[[], tinker.SamplingClient]
    task: Task
    paradigm: Paradigm
    heldout_paradigm: Paradigm
    problems: Sequence[Problem]
    heldout: Sequence[Problem]

    def draw(self, size: int, step: int, *path: str | int) -> list[Problem]:
        """The problems of a step; the same whenever they are asked for."""
        return draw_problems(self.problems, size, step, self.seed, self.name, *path)

    def play(
        self, sampler: Sampler, problems: Sequence[Problem], num_samples: int, *path: str | int
    ) -> list[Group]:
        """A group with `num_samples` samples of the policy for each problem, seeded by `path`, its
        place and its id."""
        size = num_rollouts(self.paradigm, num_samples)
        seeds = self._seeds(problems, *path)
        groups = self.paradigm.play(self.task, problems, size, sampler, seeds)
        return checked(groups, self.paradigm, problems, size)

    def play_heldout(self, sampler: Sampler, problems: Sequence[Problem]) -> list[Group]:
        """One rollout for each problem, as evaluations play them, always from the same seeds."""
        seeds = self._seeds(problems, "heldout")
        groups = self.heldout_paradigm.play(self.task, problems, 1, sampler, seeds)
        return checked(groups, self.heldout_paradigm, problems, 1)

    def _seeds(self, problems: Sequence[Problem], *path: str | int) -> list[int]:
        return [
            derive_seed(self.seed, self.name, *path, index, problem.id)
            for index, problem in enumerate(problems)
        ]

    def adam_params(self) -> tinker.AdamParams:
        """Adam without weight decay and clipping, every field said."""
        return tinker.AdamParams(
            learning_rate=self.learning_rate,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.0,
            grad_clip_norm=0.0,
        )


def is_evaluation_due(options: config.OwnStage, step: int) -> bool:
    """After every `eval_every` steps, and after the last."""
    return (step + 1) % options.eval_every == 0 or step + 1 == options.steps


def validation_accuracy(
    context: StageContext, options: config.OwnStage, client: tinker.SamplingClient
) -> float:
    """The share of right answers on the last held-out problems, one sample each at temperature 1.

    They validate: the report's evaluation takes the first ones, so that a checkpoint chosen by this
    figure was not chosen by what it is reported on. The seeds are the same at every step, so that
    two points of the curve differ by their weights.
    """
    sampler = Sampler(client, context.task.chat, options.max_tokens)
    problems = context.heldout[-options.eval_problems :]
    groups = context.play_heldout(sampler, problems)
    return float(
        np.mean([reward.is_right for g in groups for reward in g.rollouts[0].rewards.values()])
    )
