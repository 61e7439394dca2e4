"""Sessions whose client is gone."""

import asyncio
import math
from collections.abc import Callable

# A client sends a heartbeat every 10 s, whatever else it does.
SESSION_TIMEOUT_S = 600.0
TICK_S = 10.0


class Silence:
    """For how long nothing was heard of each session; one that is silent for too long is ended.

    Time is counted in ticks of the server's own event loop: a server that was stopped for an hour
    has heard nothing, and blames no client for it.
    """

    def __init__(self, end: Callable[[str], None]) -> None:
        """`end` is told the id of a session that was silent for SESSION_TIMEOUT_S."""
        self._end = end
        self._silent_s: dict[str, float] = {}
        self._ticking: asyncio.Task[None] | None = None

    def hear(self, session_id: str) -> None:
        """Note that a session's client is alive; to be called on the event loop."""
        self._silent_s[session_id] = 0.0
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def forget(self, session_id: str) -> None:
        """A session has ended."""
        self._silent_s.pop(session_id, None)

    def of(self, session_id: str) -> float:
        """Seconds since a session was heard of; infinite for one that this server never heard."""
        return self._silent_s.get(session_id, math.inf)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in which nobody was heard."""
        for session_id in list(self._silent_s):
            self._silent_s[session_id] += seconds
            if self._silent_s[session_id] >= SESSION_TIMEOUT_S:
                self.forget(session_id)
                self._end(session_id)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.pass_time(TICK_S)
