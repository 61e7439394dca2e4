"""Protobuf messages of the wire as JSON, with their arrays as numbers, and back, byte for byte."""

import base64
import math
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tinker.proto import tinker_public_pb2 as pb

Field = Any  # a descriptor, whose class depends on how protobuf was built
# What the bytes of a field hold, of whatever message: little-endian numbers.
ARRAYS = {
    ("EncodedTextChunk", "tokens"): "int32",
    ("SampledSequence", "tokens"): "int32",
    ("SampledSequence", "logprobs"): "float32",
    ("SampleResponse", "prompt_logprobs"): "float32",
    ("TopkLogprobs", "token_ids"): "int32",
    ("TopkLogprobs", "logprobs"): "float32",
    ("SparseCsr", "crow_indices"): "int64",
    ("SparseCsr", "col_indices"): "int64",
    ("BatchedTensor", "offsets"): "int64",
}
# Those of other fields are of the tensor's own type.
DTYPES = {pb.DTYPE_FLOAT32: "float32", pb.DTYPE_INT64: "int64", pb.DTYPE_INT32: "int32"}
BASE64 = "base64"


def to_json(message: Message, dtype: str | None = None) -> dict[str, Any]:
    """A message's fields by name. Bytes are `{"int32": [...]}`, or `{"base64": ...}` where they
    hold no numbers; `dtype` is that of the tensor that a message is a part of."""
    if isinstance(message, pb.Tensor | pb.BatchedTensor):
        dtype = DTYPES.get(message.dtype)
    return {
        field.name: _field_to_json(field, value, dtype) for field, value in message.ListFields()
    }


def _field_to_json(field: Field, value: Any, dtype: str | None) -> Any:
    if _is_map(field):
        inner = field.message_type.fields_by_name["value"]
        return {key: _value_to_json(inner, value[key], dtype) for key in sorted(value)}
    if field.is_repeated:
        return [_value_to_json(field, item, dtype) for item in value]
    return _value_to_json(field, value, dtype)


def _value_to_json(field: Field, value: Any, dtype: str | None) -> Any:
    if field.message_type is not None:
        return to_json(value, dtype)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if isinstance(value, bytes):
        known = ARRAYS.get((field.containing_type.name, field.name), dtype)
        return _bytes_to_json(value, known)
    return finite(value)


def _bytes_to_json(data: bytes, dtype: str | None) -> dict[str, Any]:
    if dtype is not None and len(data) % np.dtype(dtype).itemsize == 0:
        values = [finite(value) for value in np.frombuffer(data, dtype).tolist()]
        if _array_bytes(values, dtype) == data:  # not so for some kinds of NaN
            return {dtype: values}
    return {BASE64: base64.b64encode(data).decode()}


def finite(value: Any) -> Any:
    """A number that JSON has, or the name of one that it has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_json(kind: type[Message], content: dict[str, Any]) -> Message:
    """The message that `to_json` made this of."""
    message = kind()
    _fill(message, content)
    return message


def _fill(message: Message, content: dict[str, Any]) -> None:
    message.SetInParent()
    for name, value in content.items():
        field: Field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if _is_map(field):
            inner = field.message_type.fields_by_name["value"]
            for key, item in value.items():
                if inner.message_type is not None:
                    _fill(target[key], item)
                else:
                    target[key] = _scalar(inner, item)
        elif field.is_repeated and field.message_type is not None:
            for item in value:
                _fill(target.add(), item)
        elif field.is_repeated:
            target.extend(_scalar(field, item) for item in value)
        elif field.message_type is not None:
            _fill(target, value)
        else:
            setattr(message, name, _scalar(field, value))


def _scalar(field: Field, value: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[value].number
    if isinstance(value, dict):
        [(dtype, values)] = value.items()
        return base64.b64decode(values) if dtype == BASE64 else _array_bytes(values, dtype)
    is_number = field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
    return float(value) if is_number else value


def _array_bytes(values: list[Any], dtype: str) -> bytes:
    numbers = [float(value) for value in values] if dtype == "float32" else values
    return np.array(numbers, dtype).tobytes()


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
