"""Paradigms: who speaks when. The registry is explicit."""

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.opponents import Snapshots
from tinsmith.paradigms.debate import Debate
from tinsmith.paradigms.paradigm import Paradigm, Trained, checked, num_rollouts
from tinsmith.paradigms.single_turn import SingleTurn
from tinsmith.user_code import load_class, make_object

PARADIGMS = {"single_turn": SingleTurn, "debate": Debate}


def make_paradigm(section: config.Paradigm, frozen: FrozenModels | None = None) -> Paradigm:
    """The paradigm that a config section describes; `frozen` are the models that may take part
    beside the policy."""
    if isinstance(section, config.UserParadigm):
        return make_object(section, _seam(section), "paradigm", frozen=frozen)
    return PARADIGMS[section.kind].from_config(section, frozen)  # pyright: ignore[reportArgumentType]


def check_paradigm(section: config.UserParadigm) -> None:
    """Load a class of the user's own, or say what it lacks."""
    load_class(section, _seam(section), "paradigm", frozen=None)


def put_in_training(paradigm: Paradigm, snapshots: Snapshots | None) -> Paradigm:
    """The paradigm as a stage plays it: a debate is against snapshots, or against itself."""
    return paradigm.in_training(snapshots) if isinstance(paradigm, Trained) else paradigm


def _seam(section: config.UserParadigm) -> type:
    """What a class has to have; one with an opponent is told whom it meets in training."""
    return Trained if section.opponent else Paradigm


__all__ = [
    "PARADIGMS",
    "Debate",
    "Paradigm",
    "check_paradigm",
    "checked",
    "make_paradigm",
    "num_rollouts",
    "put_in_training",
]
