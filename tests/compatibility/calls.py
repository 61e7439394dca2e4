"""Calls that are written alike for every SDK version."""

from typing import Any


def settle(value: Any) -> Any:
    """What a call of the SDK gives in the end: later versions return a future where earlier ones
    return the client itself."""
    while hasattr(value, "result"):
        value = value.result()
    return value
