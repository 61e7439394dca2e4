"""Answers from a recording: a server without a model."""

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tinsmith.backend.metrics import Metrics
from tinsmith.backend.wire.bodies import read_body
from tinsmith.backend.wire.errors import error_response
from tinsmith.backend.wire.gate import Gate
from tinsmith.backend.wire.traffic.bodies import Mask, raw, readable
from tinsmith.backend.wire.traffic.exchange import Exchange, load_exchanges, message_of
from tinsmith.errors import TinsmithError

# How often a client says these, and with what, depends on the time and on the client's version.
ANY_BODY = ("/api/v1/client/", "/api/v1/create_session", "/api/v1/sessions/")
ALWAYS: dict[str, dict[str, Any]] = {
    "/api/v1/telemetry": {"status": "accepted"},
    "/api/v1/session_heartbeat": {"type": "session_heartbeat"},
    "/api/v1/client/dynamic_config": {"refresh_interval_sec": 300, "sample_cancel_enabled": True},
}
# "Ask again": the answer that came later is given at once.
WAITS = (408, 429)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
MAX_COMPARED = 500
MAX_DIFFERENCES = 3


class Replay:
    """Recorded answers by what was asked: the first time the first, then the next, and the last
    one from then on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exchanges = load_exchanges(path)
        self._answers: dict[str, deque[Exchange]] = defaultdict(deque)
        for exchange in self._exchanges:
            if exchange.status not in WAITS:
                self._answers[_key(exchange)].append(exchange)

    def answer(self, asked: Exchange) -> Exchange:
        """The recorded answer to a request, of which `asked` says what it is."""
        answers = self._answers.get(_key(asked))
        if not answers:
            raise TinsmithError(
                f"{self._path} has no answer to {asked.method} {asked.path}{self._nearest(asked)}"
            )
        return answers.popleft() if len(answers) > 1 else answers[0]

    def _nearest(self, asked: Exchange) -> str:
        same = [e for e in self._exchanges if (e.method, e.path) == (asked.method, asked.path)]
        if not same:
            return ": it was never asked there"
        differences = [list(_differences(_asked(e), _asked(asked))) for e in same[:MAX_COMPARED]]
        fewest = min(differences, key=len)
        return "; the nearest request there differs in " + ", ".join(fewest[:MAX_DIFFERENCES])


def make_replay_app(path: Path, api_key: str) -> FastAPI:
    """An application that answers from a recording, behind the same gate as a real one."""
    replay, mask = Replay(path), Mask(api_key)
    app = FastAPI(title="Tinsmith", docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/{path:path}", methods=METHODS)
    async def answer(request: Request) -> Response:
        at = request.url.path
        if at in ("/healthz", "/api/v1/healthz", "/readyz"):
            return JSONResponse({"status": "ok"})
        if at in ALWAYS:
            return JSONResponse(ALWAYS[at])
        try:
            body, kind = await read_body(request), request.headers.get("content-type", "")
            content = readable(body, kind, message_of(at, None, is_request=True), mask)
            query = mask.text(request.url.query)
            found = replay.answer(_question(request.method, mask.text(at), query, content))
            data, kind = raw(found.response)
        except TinsmithError as error:
            return error_response(at, 400, str(error))
        return Response(data, status_code=found.status, media_type=kind)

    app.add_middleware(Gate, api_key=api_key, metrics=Metrics())
    return app


def _question(method: str, path: str, query: str, request: Any) -> Exchange:
    return Exchange(0, "", 0.0, method, path, query, request, 0, None)


def _asked(exchange: Exchange) -> dict[str, Any]:
    is_any = exchange.path.startswith(ANY_BODY)
    return {"query": exchange.query, "request": None if is_any else exchange.request}


def _key(exchange: Exchange) -> str:
    asked = _asked(exchange)
    return json.dumps([exchange.method, exchange.path, asked], sort_keys=True)


def _differences(recorded: Any, asked: Any, place: str = "") -> Iterator[str]:
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for name in sorted({*recorded, *asked}):
            inner = f"{place}.{name}" if place else name
            yield from _differences(recorded.get(name), asked.get(name), inner)
    elif isinstance(recorded, list) and isinstance(asked, list) and len(recorded) == len(asked):
        for i, pair in enumerate(zip(recorded, asked, strict=True)):
            yield from _differences(*pair, f"{place}.{i}")
    elif recorded != asked:
        yield f"{place}: {_short(recorded)} recorded, {_short(asked)} asked"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
