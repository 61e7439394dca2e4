"""Mock: a coin."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.randomness import generator
from tinsmith.tasks import Task
from tinsmith.types import Rollout


@dataclass(frozen=True, slots=True)
class Mock:
    """One speaker wins by the debate's seed, whatever was said."""

    @classmethod
    def from_config(cls, section: config.MockJudge, frozen: FrozenModels) -> "Mock":
        return cls()

    def judge(
        self,
        task: Task,
        debates: Sequence[Rollout],
        speakers: tuple[str, str],
        seeds: Sequence[int],
    ) -> list[float]:
        return [float(generator(seed, "mock judge").choice((-1, 1))) for seed in seeds]
