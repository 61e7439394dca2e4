"""How many sampling requests a client may have under way."""

from tinsmith.backend.core import Busy

# Of one client, so that it does not shut out the others. One that is told so backs off.
MAX_QUEUED = 4096
MAX_QUEUED_TOKENS = 1 << 23


class Queue:
    """The sampling requests that are not answered yet, by session; on the event loop."""

    def __init__(self) -> None:
        self._queued: dict[str, dict[str, int]] = {}  # session -> request -> prompt tokens

    def enter(self, session_id: str, request_id: str, num_tokens: int) -> None:
        """Take in a request with this many prompt tokens, or refuse it as one too many."""
        queued = self._queued.get(session_id, {})
        if queued and (
            len(queued) >= MAX_QUEUED or sum(queued.values()) + num_tokens > MAX_QUEUED_TOKENS
        ):
            raise Busy(
                f"{len(queued)} sampling requests with {sum(queued.values())} prompt tokens are "
                f"queued for this session; at most {MAX_QUEUED} and {MAX_QUEUED_TOKENS} are: "
                "ask again when some are answered"
            )
        self._queued.setdefault(session_id, {})[request_id] = num_tokens

    def holds(self, session_id: str, request_id: str) -> bool:
        return request_id in self._queued.get(session_id, ())

    def leave(self, session_id: str, request_id: str) -> None:
        """A request is answered."""
        queued = self._queued[session_id]
        del queued[request_id]
        if not queued:
            del self._queued[session_id]
