"""How errors are told: in the form that the client of a path reads."""

from fastapi.responses import JSONResponse

from tinsmith.backend.completions import SamplingFailed
from tinsmith.backend.core import Busy, Gone, NotFound
from tinsmith.backend.sequencer import TooMuchHeld

# Every other mistake of a client is a 400.
STATUS = {NotFound: 404, Gone: 410, Busy: 429, TooMuchHeld: 429, SamplingFailed: 500}
OPENAI_FOLDER = "/v1/"
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


def error_response(path: str, status: int, message: str, param: str | None = None) -> JSONResponse:
    """An error as the SDK reads it, or under /v1/ as OpenAI's API has it, with the field that is
    at fault. Always with a body: the SDK retries an empty 400 as a proxy's."""
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, is shown escaped.
    text = message.encode("utf-8", "backslashreplace").decode()
    if path.startswith(OPENAI_FOLDER):
        return JSONResponse({"error": openai_error(status, text, param)}, status_code=status)
    return JSONResponse({"error": text, "detail": text}, status_code=status)


def status_of(error: Exception) -> int:
    """The HTTP status of an error whose message is for the client."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)


def openai_error(status: int, message: str, param: str | None = None) -> dict[str, str | None]:
    """The error object of OpenAI's API."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": CODES.get(status)}
