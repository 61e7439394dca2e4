"""Completions for clients without sessions: of a base model, or of a checkpoint, named in each
request."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from tinsmith.backend.core import Core
from tinsmith.backend.engine import failure
from tinsmith.backend.futures import Failure, JsonResult, Promise
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.queue import Queue
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.request import Completion, Growth, SamplingRequest, SamplingResult
from tinsmith.backend.seeds import Seeds
from tinsmith.backend.storage.records import Checkpoint
from tinsmith.errors import TinsmithError

# In the lines of the batches all these clients together are one session among the others.
SESSION_ID = "openai"
KINDS = ("sampler_weights", "weights")
# Checkpoints whose weights stay at hand when nobody samples from them.
MAX_HELD = 8


class SamplingFailed(TinsmithError):
    """The server could not answer, and the request is not at fault."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is sampled from: a base model, or the adapter of a checkpoint on it."""

    base: BaseModel
    checkpoint: Checkpoint | None = None
    lora: LoraSettings | None = None


@dataclass(slots=True)
class _Weights:
    """The held weights of a checkpoint, and how many requests sample from them."""

    weights_id: str
    num_users: int = 0


class Completions:
    """Called on the event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue = Queue()
        self._seeds = Seeds(core.settings.seed)
        self._num_seeds = 0
        self._held: dict[str, _Weights] = {}  # by the checkpoint's folder; used last at the end

    def find(self, model: str) -> Source:
        """What a model's name stands for now: a base model, or a checkpoint by its path."""
        if not model.startswith("tinker://"):
            return Source(self._core.base(model))
        checkpoint, run = self._core.checkpoint(model, *KINDS)
        return Source(self._core.base(run.base_model), checkpoint, run.lora)

    def checkpoints(self) -> list[Checkpoint]:
        """Those that can be sampled from, newest first."""
        every = self._core.store.checkpoints()
        return [checkpoint for checkpoint in every if checkpoint.kind in KINDS]

    def next_seed(self) -> int:
        """For a prompt that comes without a seed."""
        self._num_seeds += 1
        return self._seeds.of(f"{SESSION_ID}:{SESSION_ID}:{self._num_seeds}")

    def ask(
        self, source: Source, requests: Sequence[SamplingRequest], *, is_watched: bool
    ) -> "Answer":
        """Queue requests on one source. Who asks closes the answer, whatever happens."""
        request_id = f"{SESSION_ID}:{uuid.uuid4().hex}"
        num_tokens = sum(len(request.prompt) for request in requests)
        self._queue.enter(SESSION_ID, request_id, num_tokens)
        promise = self._core.promises.create(request_id)
        promise.when_done(lambda: self._core.promises.forget(request_id))
        promise.when_done(lambda: self._queue.leave(SESSION_ID, request_id))
        answer = Answer(self._core, promise, len(requests))
        try:
            weights_id = self._hold(source, promise)
        except BaseException as error:
            promise.resolve(failure("sample", error, request_id))
            return answer

        def start() -> None:
            self._core.pool.snapshots.adopt(weights_id, source.base, source.lora)
            for i, request in enumerate(requests):
                self._core.pool.add(weights_id, answer.job(i, request, is_watched))

        self._core.engine.submit("sample", start, promise)
        return answer

    def _hold(self, source: Source, promise: Promise) -> str:
        """The id of the weights, which stay until the promise is kept, whatever becomes of the
        checkpoint."""
        if source.checkpoint is None:
            return f"base:{source.base.name}"
        folder = source.checkpoint.folder
        held = self._held.pop(folder, None)
        if held is None:
            held = _Weights(f"{SESSION_ID}:{uuid.uuid4().hex}")
            path = self._core.store.folder(source.checkpoint)
            self._core.pool.snapshots.pin(held.weights_id, path)
        self._held[folder] = held
        held.num_users += 1

        def leave() -> None:
            held.num_users -= 1
            self._drop_idle()

        promise.when_done(leave)
        return held.weights_id

    def _drop_idle(self) -> None:
        idle = [folder for folder, held in self._held.items() if held.num_users == 0]
        for folder in idle[: max(0, len(self._held) - MAX_HELD)]:
            self._drop(self._held.pop(folder).weights_id)

    def _drop(self, weights_id: str) -> None:
        def forget() -> JsonResult:
            if weights_id in self._core.pool.snapshots:
                self._core.pool.forget(weights_id)
            self._core.pool.snapshots.remove_pinned(weights_id)
            return JsonResult({})

        promise = self._core.promises.create(f"{weights_id}:free")
        promise.when_done(lambda: self._core.promises.forget(promise.request_id))
        self._core.engine.submit("free", forget, promise)


Event = Growth | Completion | SamplingResult


class Answer:
    """What comes of a few requests on one source, as it comes."""

    def __init__(self, core: Core, promise: Promise, num_requests: int) -> None:
        self._core = core
        self._promise = promise
        self._num_open = num_requests
        self._jobs: list[Job] = []
        self._events: asyncio.Queue[tuple[int, int, Event] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        promise.when_done(lambda: self._events.put_nowait(None))

    async def events(self) -> AsyncIterator[tuple[int, int, Event]]:
        """The index of a request, the sample's, and what is new of it. A request's last event is
        its result, of sample -1."""
        while (event := await self._events.get()) is not None:
            yield event
        result = self._promise.result
        if isinstance(result, Failure):
            error = TinsmithError if result.category == "user" else SamplingFailed
            raise error(result.message)

    async def results(self) -> list[SamplingResult]:
        """The result of every request."""
        found: dict[int, SamplingResult] = {}
        async for i, _, event in self.events():
            if isinstance(event, SamplingResult):
                found[i] = event
        return [found[i] for i in sorted(found)]

    def close(self) -> None:
        """Give up what is not done yet: nobody waits for it any more."""
        if self._promise.is_done:
            return

        def cancel() -> Failure:
            for job in self._jobs:
                self._core.pool.cancel(job)
            return Failure("the client has closed the connection", "user")

        self._core.engine.submit("cancel_future", cancel, self._promise)

    def job(self, i: int, request: SamplingRequest, is_watched: bool) -> Job:
        """Request `i` as the sampler takes it (on the engine's thread)."""

        def tell(sample: int, event: Event) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (i, sample, event))

        def deliver(result: SamplingResult) -> None:
            tell(-1, result)
            self._num_open -= 1
            if self._num_open == 0:
                self._promise.resolve(JsonResult({}))

        job = Job(
            request,
            deliver=deliver,
            fail=lambda error: self._promise.resolve(
                failure("sample", error, self._promise.request_id)
            ),
            session_id=SESSION_ID,
            watch=tell if is_watched else None,
        )
        self._jobs.append(job)
        return job
