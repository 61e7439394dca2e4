"""Paradigms: who speaks when. The registry is explicit."""

from tinsmith import config
from tinsmith.paradigms.paradigm import Paradigm
from tinsmith.paradigms.single_turn import SingleTurn
from tinsmith.user_code import make_object

PARADIGMS = {"single_turn": SingleTurn}


def make_paradigm(section: config.Paradigm) -> Paradigm:
    """The paradigm that a config section describes."""
    if isinstance(section, config.UserClass):
        return make_object(section, Paradigm, "paradigm")
    return PARADIGMS[section.kind].from_config(section)


__all__ = ["PARADIGMS", "Paradigm", "make_paradigm"]
