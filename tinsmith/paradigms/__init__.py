"""Paradigms: who speaks when. The registry is explicit."""

from tinsmith import config
from tinsmith.frozen import FrozenModels
from tinsmith.opponents import Snapshots
from tinsmith.paradigms.debate import Debate
from tinsmith.paradigms.paradigm import Paradigm, num_rollouts
from tinsmith.paradigms.single_turn import SingleTurn
from tinsmith.user_code import make_object

PARADIGMS = {"single_turn": SingleTurn, "debate": Debate}


def make_paradigm(section: config.Paradigm, frozen: FrozenModels | None = None) -> Paradigm:
    """The paradigm that a config section describes; `frozen` are the models that take part in a
    debate beside the policy."""
    if isinstance(section, config.UserClass):
        return make_object(section, Paradigm, "paradigm")
    return PARADIGMS[section.kind].from_config(section, frozen)  # pyright: ignore[reportArgumentType]


def put_in_training(paradigm: Paradigm, snapshots: Snapshots | None) -> Paradigm:
    """The paradigm as a stage plays it: a debate is against snapshots, or against itself."""
    return paradigm.in_training(snapshots) if isinstance(paradigm, Debate) else paradigm


__all__ = ["PARADIGMS", "Debate", "Paradigm", "make_paradigm", "num_rollouts", "put_in_training"]
