"""Small valid configs with some keys replaced, and the complaint that a wrong one gets."""

from typing import Any

import pytest

from tinsmith.config import check
from tinsmith.errors import TinsmithError


def config(**changes: Any) -> dict[str, Any]:
    """A small valid config with some sections replaced."""
    return {
        "model": {"kind": "tiny"},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "stages": [{"kind": "supervised", "steps": 4}, {"kind": "grpo", "steps": 2}],
    } | changes


def grpo(**changes: Any) -> dict[str, Any]:
    stages = [{"kind": "supervised", "steps": 4}, {"kind": "grpo", "steps": 2} | changes]
    return config(stages=stages)


def recipe(**changes: Any) -> dict[str, Any]:
    """A small valid config of one recipe, with some keys of its stage replaced."""
    return config(stages=[{"kind": "cookbook", "recipe": "chat_sl.train"} | changes])


def debate(stage: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A small valid config of a debate against itself, with some keys replaced."""
    paradigm = {"kind": "debate", "judge": {"kind": "ground_truth"}, "opponent": {"kind": "self"}}
    stages = [{"kind": "grpo", "steps": 2} | (stage or {})]
    return config(stages=stages, paradigm=paradigm | changes)


def complaint(values: Any) -> str:
    with pytest.raises(TinsmithError) as caught:
        check(values)
    message = str(caught.value)
    assert "\n" not in message
    return message
