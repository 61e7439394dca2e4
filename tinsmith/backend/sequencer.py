"""The order of a model's requests: by seq_id, however they arrive, each at most once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tinsmith.backend.futures import Failure, Promise, Promises
from tinsmith.errors import TinsmithError

# The SDK tries for 300 s to submit a request: what has not come by then will not come.
GAP_TIMEOUT_S = 360.0
# A client has far fewer requests under way.
MAX_AHEAD = 10_000
# Of requests that wait behind a gap, as they came; a client sends a batch in parts of 200 MB.
MAX_HELD_BYTES = 4 << 30


class TooMuchHeld(TinsmithError):
    """A request that would have to wait, where those that wait fill their memory already."""


@dataclass(frozen=True, slots=True)
class _Held:
    promise: Promise
    start: Callable[[Promise], None]
    size_bytes: int


@dataclass(slots=True)
class _Queue:
    next_seq_id: int = 1
    waiting: dict[int, _Held] = field(default_factory=dict)
    held_bytes: int = 0
    alarm: asyncio.TimerHandle | None = None  # set while requests wait behind a gap


class Sequencer:
    """Lives on the event loop. A client sends the first chunk of a batch last, and repeats what
    it got no answer to; see the ordering contract of the Tinker API.

    Where a request does not come, those that wait behind it fail after `gap_timeout_s`, and the
    model goes on with what is sent after them: a client that polls gets an answer or an error.
    """

    def __init__(
        self,
        promises: Promises,
        gap_timeout_s: float = GAP_TIMEOUT_S,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._promises = promises
        self._max_held_bytes = max_held_bytes
        self._gap_timeout_s = gap_timeout_s
        self._queues: dict[str, _Queue] = {}

    def open(self, model_id: str) -> None:
        """Expect requests of a new model, from seq_id 1; a model that is known stays as it is."""
        self._queues.setdefault(model_id, _Queue())

    def is_open(self, model_id: str) -> bool:
        return model_id in self._queues

    def close(self, session_id: str) -> None:
        """Forget the models of a session; what waits for its turn is answered that it ended."""
        for model_id in [key for key in self._queues if key.startswith(f"{session_id}:")]:
            queue = self._queues.pop(model_id)
            _fail_waiting(queue, f"model {model_id} is gone: its session has ended")

    def submit(
        self,
        model_id: str,
        seq_id: int,
        start: Callable[[Promise], None],
        size_bytes: int = 0,
    ) -> Promise:
        """Call `start` once all earlier requests of the model have started; a request that was
        sent before gets the promise of then. `size_bytes` is what a request that waits takes."""
        queue = self._queues[model_id]
        if not 1 <= seq_id < queue.next_seq_id + MAX_AHEAD:
            raise TinsmithError(
                f"seq_id of model {model_id} must be 1 or more, and less than {MAX_AHEAD} ahead of "
                f"the next one that is due, {queue.next_seq_id}; got {seq_id}"
            )
        request_id = f"{model_id}:{seq_id}"
        if (earlier := self._promises.get(request_id)) is not None:
            return earlier
        if seq_id > queue.next_seq_id:
            self._refuse_too_much(model_id, queue.next_seq_id, size_bytes)
        promise = self._promises.create(request_id)
        if seq_id < queue.next_seq_id:
            message = (
                f"request {request_id} is not carried out: it was answered and fetched before, or "
                "it came after those behind it had been given up"
            )
            promise.resolve(Failure(message, "user"))
            return promise
        queue.waiting[seq_id] = _Held(promise, start, size_bytes)
        queue.held_bytes += size_bytes
        self._advance(model_id, queue)
        return promise

    def refuse(self, model_id: str, seq_id: int, message: str) -> Promise:
        """Let a request that cannot be carried out take its turn: those behind it wait for it."""
        failure = Failure(message, "user")
        return self.submit(model_id, seq_id, lambda promise: promise.resolve(failure))

    def _refuse_too_much(self, model_id: str, missing: int, size_bytes: int) -> None:
        held = sum(queue.held_bytes for queue in self._queues.values())
        if held and held + size_bytes > self._max_held_bytes:
            raise TooMuchHeld(
                f"model {model_id} waits for seq_id {missing}, and {held} bytes of requests are "
                f"held behind such gaps; at most {self._max_held_bytes} are: send it, and ask again"
            )

    def _advance(self, model_id: str, queue: _Queue) -> None:
        before = queue.next_seq_id
        while (ready := queue.waiting.pop(queue.next_seq_id, None)) is not None:
            queue.next_seq_id += 1
            queue.held_bytes -= ready.size_bytes
            ready.start(ready.promise)
        if queue.alarm is not None and (queue.next_seq_id > before or not queue.waiting):
            queue.alarm.cancel()
            queue.alarm = None
        if queue.waiting and queue.alarm is None:
            loop = asyncio.get_running_loop()
            queue.alarm = loop.call_later(self._gap_timeout_s, self._give_up, model_id, queue)

    def _give_up(self, model_id: str, queue: _Queue) -> None:
        missing, last = queue.next_seq_id, max(queue.waiting)
        queue.next_seq_id = last + 1
        _fail_waiting(
            queue,
            f"seq_id {missing} of model {model_id} did not come within {self._gap_timeout_s:g} s, "
            f"so what waited behind it, up to seq_id {last}, is not carried out; the model goes on "
            f"with seq_id {last + 1}. The client failed to submit it, and should make a new "
            "TrainingClient from the last checkpoint",
        )


def _fail_waiting(queue: _Queue, message: str) -> None:
    if queue.alarm is not None:
        queue.alarm.cancel()
        queue.alarm = None
    for held in queue.waiting.values():
        held.promise.resolve(Failure(message, "user"))
    queue.waiting.clear()
    queue.held_bytes = 0
