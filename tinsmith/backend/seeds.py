"""Seeds for requests that bring none."""

import hashlib
import random


class Seeds:
    """Random without a seed of the server's own; with one, a function of it and of the request's
    place: the how-manieth session to ask for a seed, and the request's own id within it.

    So a program that is run again on a server that is started again gets the same seeds, and no two
    requests share one. Called on the engine's thread.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._numbers: dict[str, int] = {}  # of sessions, whose ids are random

    def of(self, request_id: str) -> int:
        """A seed in 63 bits for the model or the request `<session>:<place>`."""
        if self._seed is None:
            return random.SystemRandom().getrandbits(63)
        session_id, _, place = request_id.partition(":")
        number = self._numbers.setdefault(session_id, len(self._numbers))
        digest = hashlib.sha256(f"{self._seed}:{number}:{place}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
