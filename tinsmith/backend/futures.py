"""Results that clients fetch later, by request id."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

MAX_KEPT = 20_000
# Of answers that were fetched once: a client whose connection broke fetches again.
MAX_FETCHED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class JsonResult:
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ProtoResult:
    data: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that cannot be answered: `user` if the request is at fault, else `server`."""

    message: str
    category: Literal["user", "server"]


Result = JsonResult | ProtoResult | Failure


class Promise:
    """One result to come; resolved from any thread, awaited on the event loop."""

    def __init__(self, request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request_id
        self._loop = loop
        self._future: asyncio.Future[Result] = loop.create_future()

    def resolve(self, result: Result) -> None:
        if not self._loop.is_closed():  # a server that has stopped answers nobody
            self._loop.call_soon_threadsafe(self._set, result)

    @property
    def is_done(self) -> bool:
        return self._future.done()

    @property
    def result(self) -> Result | None:
        """The result, if it is there."""
        return self._future.result() if self._future.done() else None

    def when_done(self, act: Callable[[], None]) -> None:
        """Call `act` on the event loop once there is a result."""
        self._future.add_done_callback(lambda _: act())

    async def wait(self, timeout_s: float) -> Result | None:
        """The result, or None if it takes longer than `timeout_s`."""
        done, _ = await asyncio.wait([self._future], timeout=timeout_s)
        return self._future.result() if done else None

    def _set(self, result: Result) -> None:
        if not self._future.done():
            self._future.set_result(result)


class Promises:
    """The promises of a server. Answered ones stay fetchable until many newer ones came, fetched
    ones as long as they fit into a bounded memory."""

    def __init__(self) -> None:
        self._promises: OrderedDict[str, Promise] = OrderedDict()
        self._fetched: OrderedDict[str, int] = OrderedDict()  # request id -> size in bytes
        self._fetched_bytes = 0
        self._closed: Failure | None = None

    def get(self, request_id: str) -> Promise | None:
        return self._promises.get(request_id)

    def create(self, request_id: str) -> Promise:
        """A new promise; to be called on the event loop."""
        promise = Promise(request_id, asyncio.get_running_loop())
        self._promises[request_id] = promise
        if self._closed is not None:
            promise.resolve(self._closed)
        self._drop_oldest_answered()
        return promise

    def forget(self, request_id: str) -> None:
        """Drop a promise that nobody will ask for by its id."""
        self._promises.pop(request_id, None)

    def note_fetched(self, request_id: str, result: Result) -> None:
        """Forget the answers fetched longest ago, where those fetched take too much memory."""
        if request_id in self._fetched:
            return
        self._fetched[request_id] = len(result.data) if isinstance(result, ProtoResult) else 0
        self._fetched_bytes += self._fetched[request_id]
        while self._fetched_bytes > MAX_FETCHED_BYTES and len(self._fetched) > 1:
            oldest, size_bytes = self._fetched.popitem(last=False)
            self._fetched_bytes -= size_bytes
            self._promises.pop(oldest, None)

    def close(self, failure: Failure) -> None:
        """Answer everything that is open, and all that is still to come, since nobody else will;
        may be called from any thread."""
        self._closed = failure
        for promise in list(self._promises.values()):
            promise.resolve(failure)

    def _drop_oldest_answered(self) -> None:
        while len(self._promises) > MAX_KEPT:
            oldest = next(iter(self._promises.values()))
            if not oldest.is_done:
                return
            del self._promises[oldest.request_id]
            self._fetched_bytes -= self._fetched.pop(oldest.request_id, 0)
