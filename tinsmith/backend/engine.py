"""The one thread that computes: training operations and sampling steps take turns."""

import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from tinsmith.backend.futures import Failure, Promise, Result
from tinsmith.backend.metrics import Metrics
from tinsmith.backend.sampling.interface import Sampling
from tinsmith.errors import TinsmithError

# Sampling alone for long does not entitle operations to more than this in one go.
MAX_CREDIT_S = 1.0
# What an operation gets to end that may be waiting for a process that has died.
GRACE_S = 20.0
DEATH_POLL_S = 1.0
# Operations that need the memory of the trainer's device.
COMPUTING = {"create_model", "load_weights", "forward", "forward_backward", "optim_step"}
log = structlog.stdlib.get_logger(__name__)


class Engine:
    """Runs operations in the order of their submission, and sampling in between.

    While both have work, each gets about half of the time, so that neither waits for all of the
    other's queue. Taking in a sample request is an operation too, a short one: all that arrived
    during a sampling step join the batch before the next.
    """

    def __init__(
        self, sampler: Sampling, metrics: Metrics, on_death: Callable[[BaseException], None]
    ) -> None:
        """`on_death` is called on the engine's thread if that ends by an error, once."""
        self._sampler = sampler
        self._metrics = metrics
        self._on_death = on_death
        self.death: BaseException | None = None
        self._operations: deque[tuple[str, Callable[[], Result | None], Promise]] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._num_turns = 0
        self._is_computing = False
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    def start(self) -> None:
        self._sampler.listen(self._wake)
        self._thread.start()

    def stop(self) -> None:
        """Finish the operation under way and end; what is queued is dropped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        while self.death is None and self._thread.is_alive():
            self._thread.join(DEATH_POLL_S)  # `expect_end` may declare it dead meanwhile

    def expect_end(self, error: BaseException, grace_s: float = GRACE_S) -> None:
        """A process has died, as `error` says: if what is under way, which may be waiting for it,
        does not end within the grace, count as dead, so that nobody waits out the rest."""
        with self._changed:
            turn = self._num_turns
            has_ended = self._changed.wait_for(
                lambda: self._num_turns > turn or not self._is_computing, grace_s
            )
        if not has_ended:
            self._die(error)

    @property
    def is_alive(self) -> bool:
        return self.death is None and self._thread.is_alive()

    @property
    def num_queued(self) -> int:
        """Operations that wait for their turn."""
        return len(self._operations)

    def submit(self, name: str, operation: Callable[[], Result | None], promise: Promise) -> None:
        """Queue an operation. It returns the promise's result, or None to resolve it later.

        `name` says in metrics and log what it is.
        """
        with self._changed:
            self._operations.append((name, operation, promise))
            self._changed.notify()

    def _wake(self) -> None:
        """Look for work again; the sampler calls it when some came from outside."""
        with self._changed:
            self._changed.notify()

    def _live(self) -> None:
        try:
            self._run()
        except BaseException as error:  # nothing computes any more, which nobody must wait out
            self._die(error)

    def _die(self, error: BaseException) -> None:
        self.death = error
        log.critical("the engine has stopped", exc_info=error)
        self._on_death(error)

    def _run(self) -> None:
        lead_s = 0.0  # by which operations are ahead of sampling
        while True:
            with self._changed:
                self._num_turns, self._is_computing = self._num_turns + 1, False
                self._changed.notify_all()
                while not (self._operations or self._is_stopping or not self._sampler.is_idle):
                    self._changed.wait()
                if self._is_stopping or self.death is not None:
                    return
                self._is_computing = True
                is_turn = bool(self._operations) and (lead_s <= 0 or self._sampler.is_idle)
                next_up = self._operations.popleft() if is_turn else None
            start = time.monotonic()
            if next_up is not None:
                if next_up[0] in COMPUTING:
                    self._sampler.make_room()
                _execute(*next_up)
                took_s = time.monotonic() - start
                self._metrics.operation_s.labels(next_up[0]).observe(took_s)
                lead_s += took_s
            elif not self._sampler.is_idle:
                self._metrics.sampled_tokens.inc(self._sampler.step())
                took_s = time.monotonic() - start
                self._metrics.sampling_step_s.observe(took_s)
                lead_s = max(lead_s - took_s, -MAX_CREDIT_S)
            if self._sampler.is_idle:
                lead_s = 0.0


def _execute(name: str, operation: Callable[[], Result | None], promise: Promise) -> None:
    try:
        result = operation()
    except Exception as error:  # whatever goes wrong belongs to this request alone
        result = failure(name, error, promise.request_id)
    if result is not None:
        promise.resolve(result)


def failure(name: str, error: BaseException, request_id: str) -> Failure:
    """What a client is told of an error: its own mistakes in full, ours with their kind."""
    if isinstance(error, TinsmithError):
        log.info("operation refused", operation=name, request_id=request_id, cause=str(error))
        return Failure(str(error), "user")
    log.error("operation failed", operation=name, request_id=request_id, exc_info=error)
    return Failure(f"internal error, {type(error).__name__}: {error}", "server")
