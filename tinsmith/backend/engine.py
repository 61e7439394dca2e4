"""The one thread that computes: training operations and sampling steps take turns."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tinsmith.backend.futures import Failure, Promise, Result
from tinsmith.backend.sampling.pool import SamplerPool
from tinsmith.errors import TinsmithError

# Sampling alone for long does not entitle operations to more than this in one go.
MAX_CREDIT_S = 1.0
log = logging.getLogger(__name__)


class Engine:
    """Runs operations in the order of their submission, and sampling in between.

    While both have work, each gets about half of the time, so that neither waits for all of the
    other's queue. Taking in a sample request is an operation too, a short one: all that arrived
    during a sampling step join the batch before the next.
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
        lead_s = 0.0  # by which operations are ahead of sampling
        while True:
            with self._changed:
                while not (self._operations or self._is_stopping or not self._sampler.is_idle):
                    self._changed.wait()
                if self._is_stopping:
                    return
                is_turn = bool(self._operations) and (lead_s <= 0 or self._sampler.is_idle)
                next_up = self._operations.popleft() if is_turn else None
            start = time.monotonic()
            if next_up is not None:
                _execute(*next_up)
                lead_s += time.monotonic() - start
            elif not self._sampler.is_idle:
                self._sampler.step()
                lead_s = max(lead_s - (time.monotonic() - start), -MAX_CREDIT_S)
            if self._sampler.is_idle:
                lead_s = 0.0


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
