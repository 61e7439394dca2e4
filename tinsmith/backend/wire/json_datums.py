"""The JSON form of forward and forward_backward, which SDKs before 0.25 send.

It becomes the protobuf message of the later ones, so that one decoder checks both.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, model_validator
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.wire.requests import ModelInput, Request
from tinsmith.errors import TinsmithError

Form = TypeVar("Form", bound=Request)
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Size = Annotated[int, Field(ge=0, lt=2**31)]
DTYPES = {
    "float32": (pb.DTYPE_FLOAT32, np.float32),
    "int64": (pb.DTYPE_INT64, np.int64),
}


class TensorData(Request):
    """Dense, or sparse CSR where `sparse_crow_indices` and `sparse_col_indices` are given."""

    data: list[Int64] | list[float]
    dtype: Literal["float32", "int64"]
    shape: list[Size] | None = None
    sparse_crow_indices: list[Int64] | None = None
    sparse_col_indices: list[Int64] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype == "int64" and any(isinstance(value, float) for value in self.data):
            raise ValueError("data of dtype int64 must be 64-bit whole numbers")
        if (self.sparse_crow_indices is None) != (self.sparse_col_indices is None):
            raise ValueError("sparse_crow_indices and sparse_col_indices go together")
        return self


class Datum(Request):
    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


class LossInput(Request):
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float] | None = None


class ForwardRequest(Request):
    model_id: str
    seq_id: int = Field(ge=1)
    forward_input: LossInput


class ForwardBackwardRequest(Request):
    model_id: str
    seq_id: int = Field(ge=1)
    forward_backward_input: LossInput


def forward_message(body: bytes) -> pb.ForwardBackwardRequest:
    """The message of a JSON request to /forward."""
    request = _parse(ForwardRequest, body)
    return _message(request.model_id, request.seq_id, request.forward_input, forward_only=True)


def forward_backward_message(body: bytes) -> pb.ForwardBackwardRequest:
    """The message of a JSON request to /forward_backward."""
    request = _parse(ForwardBackwardRequest, body)
    loss_input = request.forward_backward_input
    return _message(request.model_id, request.seq_id, loss_input, forward_only=False)


def _parse(form: type[Form], body: bytes) -> Form:
    try:
        content: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise TinsmithError(f"the body is not valid JSON: {error}") from error
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(error.errors(), body=content) from error


def _message(
    model_id: str, seq_id: int, loss_input: LossInput, *, forward_only: bool
) -> pb.ForwardBackwardRequest:
    message = pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq_id, loss_fn=loss_input.loss_fn, forward_only=forward_only
    )
    for name, value in (loss_input.loss_fn_config or {}).items():
        message.loss_fn_config[name] = value
    for datum in loss_input.data:
        entry = message.data.add()
        for chunk in datum.model_input.chunks:
            entry.model_input.add().encoded_text.tokens = _bytes(chunk.tokens, np.int32)
        for name, tensor in datum.loss_fn_inputs.items():
            entry.loss_fn_inputs[name].CopyFrom(_tensor(tensor))
    return message


def _tensor(tensor: TensorData) -> pb.Tensor:
    kind, dtype = DTYPES[tensor.dtype]
    values = _bytes(tensor.data, dtype)
    shape = [len(tensor.data)] if tensor.shape is None else tensor.shape
    message = pb.Tensor(dtype=kind, shape=shape)
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        message.dense = values
        return message
    message.sparse_csr.values = values
    message.sparse_csr.crow_indices = _bytes(tensor.sparse_crow_indices, np.int64)
    message.sparse_csr.col_indices = _bytes(tensor.sparse_col_indices, np.int64)
    return message


def _bytes(values: Sequence[float], dtype: type[np.generic]) -> bytes:
    return np.asarray(values, dtype=dtype).tobytes()
