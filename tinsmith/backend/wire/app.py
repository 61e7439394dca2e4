"""The HTTP face of the server: routes of the Tinker API, and nothing that computes."""

import sqlite3
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from structlog.contextvars import bind_contextvars

from tinsmith.backend.core import Core
from tinsmith.backend.wire import routes
from tinsmith.backend.wire.errors import OPENAI_FOLDER, error_response, status_of
from tinsmith.backend.wire.gate import Gate
from tinsmith.backend.wire.traffic.recorder import Recorder, Recording
from tinsmith.errors import TinsmithError

# Of one request that are told: each number of a tensor may be wrong.
MAX_FAULTS = 5


def make_app(core: Core, api_key: str, recording: Recording | None = None) -> FastAPI:
    """The application; every path but health and signed downloads demands the API key. What passes
    is written to the recording, if there is one."""
    app = FastAPI(title="Tinsmith", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(routes.make_router(core))
    app.add_exception_handler(TinsmithError, _refuse)
    app.add_exception_handler(RequestValidationError, partial(_refuse_invalid, core))
    app.add_exception_handler(HTTPException, _refuse_unknown)
    app.add_exception_handler(sqlite3.OperationalError, _ask_again)
    if recording is not None:
        app.add_middleware(Recorder, recording=recording, api_key=api_key)
    app.add_middleware(Gate, api_key=api_key, metrics=core.metrics)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, status_of(error), str(error))


async def _ask_again(request: Request, error: Exception) -> Response:
    """A store that another server holds for long. Not a 5xx, at which the SDK asks for a result
    again at once and for ever: at a 429 it waits longer each time."""
    if "locked" not in str(error) and "busy" not in str(error):
        raise error
    return error_response(request.url.path, 429, f"the store is busy ({error}); ask again")


async def _refuse_invalid(core: Core, request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()[:MAX_FAULTS]
    message = f"{request.url.path}: " + "; ".join(map(_describe, faults))
    if request.url.path.startswith(OPENAI_FOLDER):
        return error_response(request.url.path, 400, message, _field(faults[0]))
    match error.body:
        case {"model_id": str(model_id), "seq_id": seq_id} if (
            type(seq_id) is int and seq_id >= 1 and core.sequencer.is_open(model_id)
        ):
            bind_contextvars(request_id=f"{model_id}:{seq_id}")
            promise = core.sequencer.refuse(model_id, seq_id, message)
            return JSONResponse({"request_id": promise.request_id, "model_id": model_id})
    return error_response(request.url.path, 422, message)


def _field(fault: Mapping[str, Any]) -> str:
    if "param" in fault.get("ctx", ()):
        return fault["ctx"]["param"]
    return ".".join(str(part) for part in fault["loc"] if part != "body") or "body"


def _describe(fault: Mapping[str, Any]) -> str:
    field = _field(fault)
    if "param" in fault.get("ctx", ()):  # the message itself names it
        return fault["msg"]
    if fault["type"] == "extra_forbidden":
        return f"{field} is not a field of this request that the server honours"
    if fault["type"] == "missing":
        return f"{field} is missing"
    return f"{field}: {fault['msg']}, got {str(fault.get('input'))[:80]}"


async def _refuse_unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path} is not offered by this Tinsmith server"
        return error_response(request.url.path, error.status_code, message)
    return error_response(request.url.path, error.status_code, str(error.detail))
