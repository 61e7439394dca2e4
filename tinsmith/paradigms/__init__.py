"""Paradigms: who speaks when. The registry is explicit."""

from tinsmith import config
from tinsmith.paradigms.paradigm import Paradigm
from tinsmith.paradigms.single_turn import SingleTurn

PARADIGMS = {"single_turn": SingleTurn}


def make_paradigm(section: config.SingleTurn) -> Paradigm:
    """The paradigm that a config section describes."""
    return PARADIGMS[section.kind].from_config(section)


__all__ = ["PARADIGMS", "Paradigm", "make_paradigm"]
