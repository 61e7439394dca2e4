"""The one thread that computes: training operations and sampling steps take turns."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tinsmith.backend.futures import Failure, Promise, Result
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.errors import TinsmithError

log = logging.getLogger(__name__)


class Engine:
    """Runs operations in the order of their submission, and sampling in between.

    After an operation that took t seconds sampling gets up to t seconds, so that neither waits
    for all of the other's queue.
    """

    def __init__(self, sampler: SamplerPool) -> None:
        self._sampler = sampler
        self._operations: deque[tuple[Callable[[], Result | None], Promise]] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the operation under way and end; what is queued is dropped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, operation: Callable[[], Result | None], promise: Promise) -> None:
        """Queue an operation. It returns the promise's result, or None to resolve it later."""
        with self._changed:
            self._operations.append((operation, promise))
            self._changed.notify()

    def _run(self) -> None:
        share_s = 0.0
        while True:
            with self._changed:
                while not (self._operations or self._is_stopping or not self._sampler.is_idle):
                    self._changed.wait()
                if self._is_stopping:
                    return
                is_turn = share_s <= 0 or self._sampler.is_idle
                next_up = self._operations.popleft() if self._operations and is_turn else None
            start = time.monotonic()
            if next_up is not None:
                _execute(*next_up)
                share_s = time.monotonic() - start
            if not self._sampler.is_idle:
                start = time.monotonic()
                self._sampler.step()
                share_s -= time.monotonic() - start


def _execute(operation: Callable[[], Result | None], promise: Promise) -> None:
    try:
        result = operation()
    except Exception as error:  # whatever goes wrong belongs to this request alone
        result = failure(error)
    if result is not None:
        promise.resolve(result)


def failure(error: BaseException) -> Failure:
    """What a client is told of an error: its own mistakes in full, ours with their kind."""
    if isinstance(error, TinsmithError):
        return Failure(str(error), "user")
    log.error("request failed", exc_info=error)
    return Failure(f"internal error, {type(error).__name__}: {error}", "server")
