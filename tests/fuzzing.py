"""Requests that are almost right: made from the routes and models of the server itself.

A request starts as one that could be served, with ids that exist; then a few of its parts are left
out or replaced by what no client should send.
"""

import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal
from urllib.parse import quote

import annotated_types
import numpy as np
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from hypothesis import strategies as st
from pydantic import BaseModel
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.wire.json_datums import ForwardBackwardRequest, ForwardRequest

PROTOBUF = "application/x-protobuf"
HUGE_INTS = (0, -1, 2**31, 2**53, 2**63, -(2**63) - 1, 2**64, 10**30)
HOSTILE_TEXT = (
    "", " ", "..", "../../x", "/etc/passwd", "a/b", "a\x00b", "\x00", "\ud800", "\u202e\U0001f600",
    "a" * 300, "x" * 20_000, "tinker://../../x/weights/a", "tinker://m/weights/../../a", "tinker://",
    "%2e%2e%2f", "' OR 1=1 --", "{}", "nan", "9" * 5000, "-1", "tinker:///weights/a", "C:\\x",
    "~", "a\nb",
)  # fmt: skip
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(HUGE_INTS),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0, 1.5]),
    st.sampled_from(HOSTILE_TEXT),
    st.text(max_size=20),
    st.sampled_from([[], {}, [[]], [None], {"": None}, {"a": {"b": math.nan}}, [0] * 5000]),
    st.recursive(st.none() | st.integers(), lambda s: st.lists(s, max_size=3), max_leaves=6),
).map(deepcopy)  # since a body is spoiled in place
WHOLE_BODIES: tuple[bytes, ...] = (
    b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 100_000,
    b'{"a":' * 50_000, b"1" * 6000, b'{"model_id": 1e999}', b"\x00" * 100,
    b'{"seq_id": ' + b"9" * 5000,
)  # fmt: skip
CONTENT_TYPES = ("application/json", PROTOBUF, "text/plain", "", "multipart/form-data", "\xff/json")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
LOSS_NAMES = ("cross_entropy", "cross_entropy", "ppo", "gspo", "", "\x00")
LOSS_INPUTS = (
    ("target_tokens", "weights"),
    ("target_tokens", "weights"),
    ("target_tokens", "logprobs", "advantages"),
    ("target_tokens",),
    ("weights",),
)
# Bodies that a route decodes by itself.
UNDECLARED: Mapping[str, type[BaseModel]] = {
    "/api/v1/forward_backward": ForwardBackwardRequest,
    "/api/v1/forward": ForwardRequest,
}


@dataclass(frozen=True, slots=True)
class Route:
    """One way into the server; `body` is the model of its JSON, None if it takes none."""

    method: str
    path: str
    parameters: tuple[str, ...]
    query: tuple[str, ...]
    body: type[BaseModel] | None


@dataclass(frozen=True, slots=True)
class Call:
    """What goes over the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


def routes_of(app: FastAPI) -> list[Route]:
    """Every route of an application, also those that a test does not know of."""
    found = []
    for context in iter_route_contexts(app.routes):
        dependant, path = context.dependant, context.path
        assert dependant is not None, "a route of another kind"
        assert path is not None
        fields = [field.field_info.annotation for field in dependant.body_params]
        body = fields[0] if fields else UNDECLARED.get(path)
        assert body is None or issubclass(body, BaseModel), f"{path} takes {body}"
        for method in sorted(context.methods or ()):
            found.append(
                Route(
                    method,
                    path,
                    tuple(field.name for field in dependant.path_params),
                    tuple(field.name for field in dependant.query_params),
                    body,
                )
            )
    return found


@st.composite
def calls(draw: st.DrawFn, route: Route, known: Mapping[str, Sequence[Any]]) -> Call:
    """A request to `route`. `known` gives values that exist, by the names of fields."""
    method = draw(st.sampled_from(METHODS)) if _rarely(draw) else route.method
    target = route.path
    for name in route.parameters:
        part = draw(_path_part(known.get(name, ())))
        target = target.replace(f"{{{name}:path}}", part).replace(f"{{{name}}}", part)
    query = [f"{name}={quote(str(draw(_argument(name))), errors='replace')}"
             for name in route.query if draw(st.booleans())]  # fmt: skip
    if query:
        target += "?" + "&".join(query)
    content_type, body = draw(_body(route, known))
    if _rarely(draw):
        content_type = draw(st.sampled_from(CONTENT_TYPES))
    headers = {"Content-Type": content_type} if content_type else {}
    if _rarely(draw):
        headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "zstd", "identity, gzip"]))
    return Call(method, target, headers, body)


def _rarely(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 14)) == 7


def _path_part(known: Sequence[Any]) -> st.SearchStrategy[str]:
    exists = st.sampled_from([quote(str(value)) for value in known]) if known else st.nothing()
    hostile = st.sampled_from(HOSTILE_TEXT).filter(len) | st.text(min_size=1, max_size=8)
    encoded = hostile.map(lambda text: quote(text, safe="", errors="replace").replace(".", "%2E"))
    return exists | exists | exists | exists | encoded.map(lambda text: text[:8000])


def _argument(name: str) -> st.SearchStrategy[Any]:
    if name in ("limit", "offset"):
        return st.integers(0, 5) | st.sampled_from(HUGE_INTS) | st.sampled_from(HOSTILE_TEXT)
    return st.sampled_from(["owned", "accessible"]) | st.sampled_from(HOSTILE_TEXT)


@st.composite
def _body(draw: st.DrawFn, route: Route, known: Mapping[str, Sequence[Any]]) -> tuple[str, bytes]:
    if _rarely(draw):
        return "application/json", draw(st.sampled_from(WHOLE_BODIES))
    if route.path.endswith("/forward_backward") and draw(st.booleans()):
        return PROTOBUF, draw(_forward_backward(known))
    if route.body is None:
        return ("application/json", json.dumps(draw(JUNK)).encode()) if _rarely(draw) else ("", b"")
    value = draw(_model(route.body, known))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 4]))):
        _spoil(draw, value)
    body = json.dumps(value).encode()
    return "application/json", body[: draw(st.integers(0, len(body)))] if _rarely(draw) else body


def _spoil(draw: st.DrawFn, value: dict[str, Any]) -> None:
    """Replace, remove or add one value somewhere in a body."""
    inner: list[Any] = list(_containers(value))
    place = draw(st.sampled_from(inner))
    if isinstance(place, list):
        place[:1] = [draw(JUNK)]
        return
    keys = [*place, "unknown_field", "model_id", "seq_id"]
    key = draw(st.sampled_from(keys))
    if key in place and draw(st.integers(0, 3)) == 0:
        del place[key]
    else:
        place[key] = draw(JUNK)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from _containers(child)


@st.composite
def _model(
    draw: st.DrawFn, model: type[BaseModel], known: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """A body with all fields that are needed and some that are not."""
    body = {}
    for name, field in model.model_fields.items():
        if name == "type" and str in typing.get_args(field.annotation):
            continue  # which any text is
        if not field.is_required() and draw(st.integers(0, 2)) > 0:
            continue
        if name in known:
            body[name] = deepcopy(draw(st.sampled_from(known[name])))
        else:
            body[name] = draw(_of_type(field.annotation, known, field.metadata))
    return body


def _of_type(
    kind: Any, known: Mapping[str, Sequence[Any]], bounds: Iterable[Any] = ()
) -> st.SearchStrategy[Any]:
    """Values that a field of this type takes."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _of_type(arguments[0], known, arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of_type(one, known, bounds) for one in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_of_type(arguments[0], known), min_size=1, max_size=3)
    if origin is dict:
        values = _of_type(arguments[1], known)
        return st.dictionaries(st.sampled_from(["a", "weights", "logprobs"]), values, max_size=2)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _model(kind, known)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from([member.value for member in kind])
    if kind is int:
        floor = next((int(b.ge) for b in bounds if isinstance(b, annotated_types.Ge)), 1)  # pyright: ignore
        return st.integers(floor, floor + 4)
    simple = {
        str: st.text("abcxyz", min_size=1, max_size=6),
        float: st.sampled_from([0.0, 0.5, 1.0]),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple.get(kind, JUNK)


@st.composite
def _forward_backward(draw: st.DrawFn, known: Mapping[str, Sequence[Any]]) -> bytes:
    """A protobuf request with some of its parts spoiled."""
    seq_id = draw(st.sampled_from(known["seq_id"]) | st.sampled_from([0, -1, 2**31 - 1]))
    message = pb.ForwardBackwardRequest(
        model_id=draw(st.sampled_from([*known["model_id"], "", "x" * 5000])),
        seq_id=seq_id,
        loss_fn=draw(st.sampled_from(LOSS_NAMES)),
        forward_only=draw(st.booleans()),
    )
    for _ in range(draw(st.integers(0, 3))):
        _add_datum(draw, message.data.add())
    if _rarely(draw):
        message.loss_fn_config[draw(st.text(max_size=5))] = draw(st.floats())
    data = message.SerializeToString()
    if _rarely(draw):
        return data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=20))
    return data


def _add_datum(draw: st.DrawFn, datum: pb.Datum) -> None:
    size = draw(st.sampled_from([1, 3, 3, 3, 0, 600]))
    tokens = draw(st.sampled_from([[5] * size, [5] * size, [-1] * size, [10**6] * size]))
    data = np.array(tokens, np.int32).tobytes()
    datum.model_input.add().encoded_text.tokens = data + draw(st.sampled_from([b"", b"", b"\x01"]))
    for name in draw(st.sampled_from(LOSS_INPUTS)):
        tensor = datum.loss_fn_inputs[name]
        is_whole = name == "target_tokens"
        tensor.dtype = pb.DTYPE_INT64 if is_whole else pb.DTYPE_FLOAT32
        if _rarely(draw):
            tensor.dtype = draw(st.sampled_from([0, 1, 2, 3, 4, 9]))  # pyright: ignore
        shape = draw(st.sampled_from([[size], [size], [size, 1], [], [-1], [2**31 - 1], [0]]))
        tensor.shape.extend(shape)
        values = draw(
            st.sampled_from([1, 1, 1, 0, -5, 399] if is_whole else [1, 1, math.nan, 1e38])
        )
        kind = np.int64 if is_whole else np.float32
        tensor.dense = np.full(size, values, kind).tobytes() + draw(
            st.sampled_from([b"", b"", b"", b"\x07"])
        )
        if _rarely(draw):
            tensor.sparse_csr.values = draw(st.binary(max_size=16))
            tensor.sparse_csr.crow_indices = draw(st.binary(max_size=24))
            tensor.sparse_csr.col_indices = draw(st.binary(max_size=24))
