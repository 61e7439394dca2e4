"""Ground truth: the task's own grading decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.tasks import Task
from tinsmith.types import Rollout


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The speaker whose answer is right wins; where both are, or neither is, it is a draw."""

    @classmethod
    def from_config(cls, section: config.GroundTruthJudge, frozen: FrozenModels) -> "GroundTruth":
        return cls()

    def judge(
        self,
        task: Task,
        debates: Sequence[Rollout],
        speakers: tuple[str, str],
        seeds: Sequence[int],
    ) -> list[float]:
        first, second = speakers
        return [
            float(debate.rewards[first].is_right) - float(debate.rewards[second].is_right)
            for debate in debates
        ]
