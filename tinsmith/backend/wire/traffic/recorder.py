"""Writes down what goes over the wire."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TextIO

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinsmith.backend.wire.traffic.bodies import Mask, readable, uncompressed
from tinsmith.backend.wire.traffic.exchange import Exchange, message_of
from tinsmith.errors import TinsmithError

RECORDED = ("/api/v1/", "/v1/", "/files/")


class Recording:
    """A file to which exchanges are appended, from any thread."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, exchange: Exchange) -> None:
        line = exchange.line()
        with self._lock:
            self._file.write(line)
            self._file.flush()


@contextmanager
def opened_recording(path: str | None) -> Iterator[Recording | None]:
    """The recording at `path`, which is made if it is not there; None records nothing."""
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(
                Path(path).open("a", encoding="utf-8", errors="backslashreplace")
            )
        except OSError as error:
            raise TinsmithError(f"--record {path}: cannot be written: {error.strerror}") from error
        yield Recording(file)


class Recorder:
    """ASGI middleware behind the gate: what has no key is not recorded."""

    def __init__(self, app: ASGIApp, recording: Recording, api_key: str) -> None:
        self._app = app
        self._recording = recording
        self._mask = Mask(api_key)
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(RECORDED):
            await self._app(scope, receive, send)
            return
        seen = _Seen(next(self._numbers), datetime.now(UTC), time.perf_counter())

        async def receive_too() -> Message:
            message = await receive()
            seen.request += message.get("body", b"")
            return message

        async def send_too(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status, seen.headers = message["status"], Headers(raw=message["headers"])
            seen.response += message.get("body", b"")
            await send(message)

        try:
            await self._app(scope, receive_too, send_too)
        finally:
            took_s = time.perf_counter() - seen.start_s
            await asyncio.to_thread(
                lambda: self._recording.write(self._exchange(scope, seen, took_s))
            )

    def _exchange(self, scope: Scope, seen: "_Seen", took_s: float) -> Exchange:
        headers, path = Headers(scope=scope), scope["path"]
        data = uncompressed(bytes(seen.request), headers.get("content-encoding", ""))
        name = message_of(path, None, is_request=True)
        request = readable(data, headers.get("content-type", ""), name, self._mask)
        name = message_of(path, request, is_request=False)
        kind = seen.headers.get("content-type", "")
        return Exchange(
            number=seen.number,
            time=seen.time.isoformat(timespec="milliseconds"),
            duration_ms=round(1e3 * took_s, 1),
            method=scope["method"],
            path=self._mask.text(path),
            query=self._mask.text(scope["query_string"].decode("latin-1")),
            request=request,
            status=seen.status,
            response=readable(bytes(seen.response), kind, name, self._mask),
        )


class _Seen:
    """What was seen so far of one request; a status of 500 until there is another."""

    def __init__(self, number: int, moment: datetime, start_s: float) -> None:
        self.number = number
        self.time = moment
        self.start_s = start_s
        self.request = bytearray()
        self.response = bytearray()
        self.status = 500
        self.headers = Headers()
