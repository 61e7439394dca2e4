"""What stands before every route: request ids, the API key, the bound on bodies, log and counts."""

import secrets
import time

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinsmith.backend.metrics import Metrics
from tinsmith.backend.wire.errors import error_response

PUBLIC_PATHS = ("/healthz", "/api/v1/healthz", "/readyz")
PUBLIC_FOLDER = "/files/"  # each file behind a secret of its own
# A batch of data; the bound that clients are told lies below it, since they count the payload only.
MAX_DATA_BYTES = 256 << 20
DATA_PATHS = ("/api/v1/forward_backward", "/api/v1/forward")
MAX_BODY_BYTES = 32 << 20
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TRY_AGAIN = 408
WRONG_KEY = "the API key is missing or wrong; set TINKER_API_KEY to the key of this server"
log = structlog.stdlib.get_logger(__name__)


class Gate:
    """ASGI middleware. Every request that passes or is turned away leaves one line in the log."""

    def __init__(self, app: ASGIApp, api_key: str, metrics: Metrics) -> None:
        self._app = app
        self._api_key = api_key.encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        http_id = secrets.token_hex(8)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(http_id=http_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", http_id.encode())]
            await send(message)

        try:
            await self._admit(scope, receive, send_with_id)
        except Exception as error:
            log.error("request crashed", path=scope["path"], exc_info=error)
            if status == 0:
                message = f"internal error, {type(error).__name__}: {error} (request {http_id})"
                await error_response(scope["path"], 500, message)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not self._may_pass(scope["path"], headers):
            await error_response(scope["path"], 401, WRONG_KEY)(scope, receive, send)
            return
        max_bytes = MAX_DATA_BYTES if scope["path"] in DATA_PATHS else MAX_BODY_BYTES
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > max_bytes:
            refusal = error_response(scope["path"], 413, _too_large(max_bytes))
            await refusal(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, max_bytes), send)

    def _may_pass(self, path: str, headers: Headers) -> bool:
        """Keys come as the SDK sends them, or as a bearer token, as Prometheus does."""
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER):
            return True
        given = headers.get("x-api-key")
        if given is None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
        return secrets.compare_digest(given.encode(), self._api_key)

    def _note(self, scope: Scope, status: int, duration_s: float) -> None:
        route, method, path = scope.get("route"), scope["method"], scope["path"]
        # Never what a stranger made up: each new label value would take memory for good.
        template = "unmatched" if route is None else route.path
        known_method = method if method in METHODS else "other"
        self._metrics.http_requests.labels(known_method, template, str(status)).inc()
        is_refused = status >= 400 and status != TRY_AGAIN
        write = log.warning if is_refused else log.debug
        write(
            "request",
            method=method,
            path=PUBLIC_FOLDER if path.startswith(PUBLIC_FOLDER) else path,
            status=status,
            duration_ms=round(1e3 * duration_s, 1),
        )


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """A body that states no length is cut off where it passes the bound."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise HTTPException(413, _too_large(max_bytes))
        return message

    return receive_bounded


def _too_large(max_bytes: int) -> str:
    return f"the request's body is larger than {max_bytes} bytes; send less at a time"
