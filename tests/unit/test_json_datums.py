"""The JSON form of training data means what its protobuf form means."""

import json
from typing import Any

import pytest
import torch
from fastapi.exceptions import RequestValidationError
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from tinsmith.backend.wire.json_datums import forward_backward_message, forward_message
from tinsmith.errors import TinsmithError

DENSE = {"data": [0.1, -2.5, 1e-7], "dtype": "float32", "shape": [3]}
TARGETS = {"data": [5, 6, 399], "dtype": "int64"}
SPARSE_2D = torch.zeros(6, 4)
SPARSE_2D[2, 1], SPARSE_2D[5, 3] = 0.5, -0.25


def body(inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    chunks = [{"type": "encoded_text", "tokens": [1, 2]}, {"type": "encoded_text", "tokens": [3]}]
    datum = {"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}
    loss_input = {"data": [datum], "loss_fn": "ppo", "loss_fn_config": {"clip_low_threshold": 0.9}}
    return {"model_id": "m", "seq_id": 7, "forward_backward_input": loss_input} | changes


def decoded(content: dict[str, Any]) -> pb.ForwardBackwardRequest:
    return forward_backward_message(json.dumps(content).encode())


def sdk_message(**inputs: types.TensorData) -> pb.ForwardBackwardRequest:
    tokens = types.ModelInput.from_ints([1, 2]).append_int(3)
    datum = types.Datum(model_input=tokens, loss_fn_inputs=inputs)
    loss_input = ForwardBackwardInput([datum], "ppo", {"clip_low_threshold": 0.9})
    message = forward_backward_request_to_proto(ForwardBackwardRequest(loss_input, "m", 7))
    message.loss_fn_config_v2.clear()  # says the same once more
    return message


def test_json_becomes_the_message_that_the_newest_sdk_sends_for_the_same_data():
    sparse = types.TensorData.from_torch_sparse(SPARSE_2D)
    assert sparse.sparse_crow_indices is not None, "the example is meant to be sparse"
    as_json = {
        "data": [0.5, -0.25],
        "dtype": "float32",
        "shape": [6, 4],
        "sparse_crow_indices": list(sparse.sparse_crow_indices),
        "sparse_col_indices": list(sparse.sparse_col_indices or []),
    }
    expected = sdk_message(
        target_tokens=types.TensorData(data=[5, 6, 399], dtype="int64", shape=[3]),
        advantages=types.TensorData(**DENSE),  # pyright: ignore[reportArgumentType]
        weights=sparse,
    )
    assert decoded(body({"target_tokens": TARGETS, "advantages": DENSE, "weights": as_json})) == (
        expected
    )


def test_json_to_forward_differs_in_forward_only_alone():
    content = body({"target_tokens": TARGETS})
    expected = decoded(content)
    assert not expected.forward_only
    expected.forward_only = True
    content["forward_input"] = content.pop("forward_backward_input")
    assert forward_message(json.dumps(content).encode()) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (body({"w": DENSE | {"dtype": "float16"}}), "Input should be 'float32' or 'int64'"),
        (body({"w": TARGETS | {"data": [1.0, 2.0]}}), "int64 must be 64-bit whole numbers"),
        (body({"w": TARGETS | {"data": [2**63]}}), "int64 must be 64-bit whole numbers"),
        (body({"w": DENSE | {"shape": [-1]}}), "greater than or equal to 0"),
        (body({"w": DENSE | {"sparse_col_indices": [0]}}), "go together"),
        (body({"w": DENSE | {"requires_grad": True}}), "requires_grad"),
        (body({}, seq_id=0), "greater than or equal to 1"),
        (body({}, forward_backward_input={"data": []}), "loss_fn"),
        (body({}, optimizer="adamw"), "optimizer"),
        ([1, 2], "valid dictionary"),
    ],
)
def test_json_that_breaks_a_rule_is_refused_with_the_field_and_the_rule(
    content: dict[str, Any], message: str
):
    with pytest.raises(RequestValidationError) as caught:
        decoded(content)
    assert message in str(caught.value.errors())


def test_a_body_that_is_not_json_is_refused():
    with pytest.raises(TinsmithError, match="not valid JSON"):
        forward_backward_message(b'{"model_id": NaN}')
