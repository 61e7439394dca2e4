"""Judges: who wins a debate. The registry is explicit."""

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.judges.ground_truth import GroundTruth
from tinsmith.judges.judge import Judge
from tinsmith.judges.mock import Mock
from tinsmith.judges.model import Model

JUDGES = {"mock": Mock, "ground_truth": GroundTruth, "model": Model}


def make_judge(section: config.Judge, frozen: FrozenModels) -> Judge:
    """The judge that a config section describes."""
    return JUDGES[section.kind].from_config(section, frozen)  # pyright: ignore[reportArgumentType]


__all__ = ["JUDGES", "Judge", "make_judge"]
