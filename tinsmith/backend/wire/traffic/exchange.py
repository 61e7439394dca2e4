"""One request and its answer, as a line of a recording."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError


@dataclass(frozen=True, slots=True)
class Exchange:
    """`number` counts the requests of a server in the order of their arrival; `time` is when this
    one came, in UTC. Bodies are as `traffic.bodies.readable` makes them."""

    number: int
    time: str
    duration_ms: float
    method: str
    path: str
    query: str
    request: Any
    status: int
    response: Any

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


NAMES = [field.name for field in fields(Exchange)]


def message_of(path: str, request: Any, *, is_request: bool) -> str | None:
    """The name of the protobuf message that goes there over the wire, or comes back for a
    request that is read already."""
    if path == "/api/v1/forward_backward" and is_request:
        return "ForwardBackwardRequest"
    if path == "/api/v1/retrieve_future" and not is_request:
        content = (request or {}).get("json")
        asked = str(content.get("request_id")) if isinstance(content, dict) else ""
        return "SampleResponse" if ":sample:" in asked else "ForwardBackwardOutput"
    return None


def load_exchanges(path: Path) -> Sequence[Exchange]:
    """The lines of a recording, in the order of arrival."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TinsmithError(f"the recording {path} cannot be read: {error}") from error
    if not lines:
        raise TinsmithError(f"the recording {path} is empty")
    return [_exchange(path, number, line) for number, line in enumerate(lines, start=1)]


def _exchange(path: Path, number: int, line: str) -> Exchange:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise TinsmithError(f"{path}, line {number} must be a JSON object: {error}") from error
    if not isinstance(content, dict) or sorted(content) != sorted(NAMES):
        raise TinsmithError(
            f"{path}, line {number} must be a JSON object with the fields {', '.join(NAMES)}"
        )
    return Exchange(**content)
