"""The order of a model's requests: by seq_id, however they arrive, each at most once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tinsmith.backend.futures import Failure, Promise, Promises


@dataclass(slots=True)
class _Queue:
    next_seq_id: int = 1
    waiting: dict[int, Callable[[], None]] = field(default_factory=dict)


class Sequencer:
    """Lives on the event loop. A client sends the first chunk of a batch last, and repeats what
    it got no answer to; see the ordering contract of the Tinker API."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises
        self._queues: dict[str, _Queue] = {}

    def open(self, model_id: str) -> None:
        """Expect requests of a new model, from seq_id 1."""
        self._queues[model_id] = _Queue()

    def is_open(self, model_id: str) -> bool:
        return model_id in self._queues

    def close(self, model_id: str) -> None:
        self._queues.pop(model_id, None)

    def submit(self, model_id: str, seq_id: int, start: Callable[[Promise], None]) -> Promise:
        """Call `start` once all earlier requests of the model have started; a request that was
        sent before gets the promise of then."""
        request_id = f"{model_id}:{seq_id}"
        if (earlier := self._promises.get(request_id)) is not None:
            return earlier
        promise = self._promises.create(request_id)
        queue = self._queues[model_id]
        if seq_id < queue.next_seq_id:
            promise.resolve(Failure(f"request {request_id} was answered long ago", "server"))
            return promise
        queue.waiting[seq_id] = lambda: start(promise)
        while (ready := queue.waiting.pop(queue.next_seq_id, None)) is not None:
            queue.next_seq_id += 1
            ready()
        return promise

    def refuse(self, model_id: str, seq_id: int, message: str) -> Promise:
        """Let a request that cannot be carried out take its turn: those behind it wait for it."""
        failure = Failure(message, "user")
        return self.submit(model_id, seq_id, lambda promise: promise.resolve(failure))
