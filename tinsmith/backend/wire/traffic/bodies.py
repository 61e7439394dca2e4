"""Bodies of requests and answers, as a recording has them, and back."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.wire.bodies import decompress
from tinsmith.backend.wire.traffic.messages import finite, from_json, to_json
from tinsmith.errors import TinsmithError

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
EVENTS = "text/event-stream"
MESSAGES: Mapping[str, type[Message]] = {
    kind.DESCRIPTOR.name: kind
    for kind in (pb.ForwardBackwardRequest, pb.ForwardBackwardOutput, pb.SampleResponse)
}
MASK = "***"
# Keys of Tinker, OpenAI and the hub, JWTs, and links that open a download.
SECRET = re.compile(r"\b(tml-|sk-|hf_|eyJ)[A-Za-z0-9_.~+/=-]{6,}|(?<=/files/)[A-Za-z0-9_-]{20,}")
SECRET_FIELD = re.compile(
    r"api_?key|access_token|hf_token|password|secret|authorization|credential", re.IGNORECASE
)


class Mask:
    """Takes secrets out of what is recorded: the server's own key and everything that looks like
    one, and the values of fields whose names say so."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def text(self, text: str) -> str:
        return SECRET.sub(MASK, text.replace(self._api_key, MASK))

    def value(self, value: Any) -> Any:
        """The same of a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            # Most lists are of numbers, and long.
            return [self.value(item) if isinstance(item, str | list | dict) else finite(item)
                    for item in value]  # fmt: skip
        if isinstance(value, dict):
            return {
                self.text(key): MASK
                if isinstance(inner, str) and SECRET_FIELD.search(key)
                else self.value(inner)
                for key, inner in value.items()
            }
        return finite(value)


def readable(data: bytes, content_type: str, message: str | None, mask: Mask) -> Any:
    """A body as one JSON object that says of which kind it is; None if it is empty. Of what is
    neither JSON, text nor a message the size and the SHA-256 are kept."""
    if not data:
        return None
    try:
        if content_type.startswith(PROTOBUF) and message is not None:
            found = MESSAGES[message].FromString(data)
            return {"protobuf": message, "content": mask.value(to_json(found))}
        if content_type.startswith(EVENTS):
            lines = data.decode().split("\n\n")
            found = [line.removeprefix("data: ") for line in lines if line]
            return {"events": [_event(text, mask) for text in found]}
        if content_type.startswith(JSON):
            return {"json": mask.value(json.loads(data))}
        if content_type.startswith("text/"):
            return {"text": mask.text(data.decode())}
    except (DecodeError, ValueError, RecursionError):
        pass  # a body that is not what it says is bytes
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _event(text: str, mask: Mask) -> Any:
    return mask.value(json.loads(text)) if text.startswith("{") else mask.text(text)


def raw(body: Any) -> tuple[bytes, str]:
    """The bytes of a recorded body, and their content type."""
    if body is None:
        return b"", JSON
    if "protobuf" in body:
        message = from_json(MESSAGES[body["protobuf"]], body["content"])
        return message.SerializeToString(deterministic=True), PROTOBUF
    if "events" in body:
        lines = (one if isinstance(one, str) else _compact(one) for one in body["events"])
        return "".join(f"data: {line}\n\n" for line in lines).encode(), EVENTS
    if "json" in body:
        return _compact(body["json"]).encode(), JSON
    if "text" in body:
        return body["text"].encode(), "text/plain; charset=utf-8"
    raise TinsmithError(
        f"the recorded answer was {body['size_bytes']} bytes of data, which a recording does not "
        "keep: what is downloaded cannot be replayed"
    )


def uncompressed(data: bytes, encoding: str) -> bytes:
    """A request's body without its Content-Encoding."""
    try:
        return decompress(data) if encoding == "zstd" else data
    except TinsmithError:
        return data


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
