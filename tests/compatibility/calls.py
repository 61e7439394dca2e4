"""Calls that are written alike for every SDK version, and for a method and its `_async` twin."""

import asyncio
import inspect
from typing import Any


class Call:
    """The method under test, to be called on an object; what it returns is settled."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __call__(self, owner: Any, *args: Any, **kwargs: Any) -> Any:
        return settle(getattr(owner, self._method)(*args, **kwargs))


def settle(value: Any) -> Any:
    """What a call of the SDK gives in the end: later versions return a future where earlier ones
    return the client itself."""
    while True:
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        elif hasattr(value, "result"):
            value = value.result()
        else:
            return value
