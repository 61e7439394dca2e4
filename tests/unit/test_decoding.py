"""Training data as it comes over the wire: decoded exactly, or refused by field before any use."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinker import TensorData
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import _tensor_data_to_proto

from tinsmith.backend.model import tensors
from tinsmith.backend.model.datums import Datum, decode_datums
from tinsmith.backend.model.loss_choice import LossChoice, check_substitutes, choose_loss
from tinsmith.backend.model.tensors import decode_tensor
from tinsmith.errors import TinsmithError


def dense(values: object, dtype: type = np.float32) -> pb.Tensor:
    return _tensor_data_to_proto(TensorData.from_numpy(np.array(values, dtype)))


def sparse(
    values: Sequence[float], starts: Sequence[int], columns: Sequence[int], shape: Sequence[int]
) -> pb.Tensor:
    message = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=shape)
    message.sparse_csr.values = np.array(values, np.float32).tobytes()
    message.sparse_csr.crow_indices = np.array(starts, np.int64).tobytes()
    message.sparse_csr.col_indices = np.array(columns, np.int64).tobytes()
    return message


@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=8,
        )
    )
)
def test_a_tensor_comes_out_as_the_sdk_wrote_it_dense_or_sparse(rows: list[list[float]]):
    tensor = torch.tensor(rows)
    for data in (TensorData.from_torch(tensor), TensorData.from_torch_sparse(tensor)):
        found = decode_tensor("x", _tensor_data_to_proto(data))
        np.testing.assert_array_equal(found, tensor.numpy())


def test_a_tensor_without_a_shape_has_one_dimension():
    message = pb.Tensor(dtype=pb.DTYPE_INT64, dense=np.arange(3, dtype=np.int64).tobytes())
    assert decode_tensor("x", message).tolist() == [0, 1, 2]


WRONG_TENSORS: dict[str, tuple[pb.Tensor, str]] = {
    "dtype": (pb.Tensor(dtype=pb.DTYPE_BFLOAT16), "dtype must be float32 or int64"),
    "half a value": (
        pb.Tensor(dtype=pb.DTYPE_FLOAT32, dense=b"12345"), "5 bytes are not a whole number of fl",
    ),
    "shape": (
        pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[3], dense=bytes(8)),
        r"shape \[3\] does not fit the 2 values",
    ),
    "negative shape": (
        pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[-1, -2], dense=bytes(8)), "at most .* elements",
    ),
    "claimed to be huge": (sparse([], [0, 0], [], [1, 1 << 40]), "at most 67108864 elements"),
    "sparse in 1 dimension": (sparse([1], [0, 1], [0], [1]), "sparse tensor must have 2 dim"),
    "too few rows": (sparse([1], [0, 1], [0], [2, 2]), "crow_indices must rise"),
    "falling rows": (sparse([1, 2], [0, 3, 2], [0, 1], [2, 2]), "crow_indices must rise"),
    "not from 0": (sparse([1], [1, 1, 1], [0], [2, 2]), "crow_indices must rise"),
    "no columns": (sparse([1], [0, 1, 1], [], [2, 2]), r"for every value \(got 0\)"),
    "column outside": (sparse([1], [0, 1, 1], [2], [2, 2]), "col_indices must be 0 to 1"),
    "negative column": (sparse([1], [0, 1, 1], [-1], [2, 2]), "col_indices must be 0 to 1"),
    "column twice": (sparse([1, 2], [0, 2, 2], [1, 1], [2, 2]), "must rise within each row"),
    "not finite": (sparse([np.inf], [0, 0, 1], [1], [2, 2]), r"\[1, 1\]: must be finite, got inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_a_wrong_tensor_is_refused_by_what_is_wrong_with_it(case: str):
    message, complaint = WRONG_TENSORS[case]
    with pytest.raises(TinsmithError, match=f"^x.*{complaint}"):
        decode_tensor("x", message)


def request(
    loss: str, tensors: dict[str, pb.Tensor], **fields: object
) -> pb.ForwardBackwardRequest:
    message = pb.ForwardBackwardRequest(loss_fn=loss, **fields)  # pyright: ignore[reportArgumentType]
    datum = message.data.add()
    for part in ([5, 6], [7]):
        datum.model_input.add().encoded_text.tokens = np.array(part, np.int32).tobytes()
    for name, tensor in tensors.items():
        datum.loss_fn_inputs[name].CopyFrom(tensor)
    return message


def decode(message: pb.ForwardBackwardRequest) -> list[Datum]:
    return decode_datums(message, choose_loss(message), vocabulary_size=10, context_length=8)


def test_chunks_are_one_sequence_and_targets_keep_their_shape():
    targets = [[1, 2], [0, 0], [9, 0]]
    weights = np.array([[0.5, 0.5], [0, 0], [1, 0]], np.float32)
    [datum] = decode(
        request(
            "cross_entropy",
            {
                "target_tokens": dense(targets, np.int64),
                "weights": sparse([0.5, 0.5, 1], [0, 2, 2, 3], [0, 1, 0], [3, 2]),
            },
        )
    )
    assert datum.tokens.tolist() == [5, 6, 7]
    assert datum.target_tokens.tolist() == targets
    np.testing.assert_array_equal(datum.loss_inputs["weights"], weights)
    assert datum.suffix(2).target_tokens.tolist() == targets[1:]


def test_whole_numbers_may_be_weights():
    inputs = {"target_tokens": dense([1, 2, 3], np.int64), "weights": dense([0, 1, 1], np.int64)}
    [datum] = decode(request("cross_entropy", inputs))
    assert datum.loss_inputs["weights"].dtype == np.float32
    assert datum.loss_inputs["weights"].tolist() == [0, 1, 1]


WRONG_INPUTS: dict[str, tuple[Callable[[], dict[str, pb.Tensor]], str]] = {
    "no alternatives": (
        lambda: {"target_tokens": dense(np.zeros((3, 0)), np.int64), "weights": dense([1, 1, 1])},
        r"target_tokens: must have one value per token of model_input, shape \[3\], got \[3, 0\]",
    ),
    "three dimensions": (
        lambda: {"target_tokens": dense(np.zeros((3, 1, 1)), np.int64), "weights": dense([1])},
        r"target_tokens: .* shape \[3\], got \[3, 1, 1\]",
    ),
    "a target outside": (
        lambda: {"target_tokens": dense([[1, 2], [3, 10], [1, 1]], np.int64),
                 "weights": dense(np.ones((3, 2)))},
        r"target_tokens\[1, 1\]: token ids must be 0 to 9, got 10",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_targets_are_refused_by_their_place(case: str):
    make, complaint = WRONG_INPUTS[case]
    with pytest.raises(TinsmithError, match=rf"data\[0\].loss_fn_inputs.{complaint}"):
        decode(request("cross_entropy", make()))


def test_tokens_that_end_in_the_middle_are_refused():
    message = request("cross_entropy", {})
    message.data[0].model_input[1].encoded_text.tokens = b"12345"
    with pytest.raises(TinsmithError, match=r"data\[0\].model_input\[1\]: 5 bytes are not"):
        decode(message)


def test_small_data_that_unfold_to_a_large_request_are_refused(monkeypatch: pytest.MonkeyPatch):
    inputs = {
        "target_tokens": dense(np.ones((3, 2)), np.int64),
        "weights": sparse([], [0] * 4, [], [3, 2]),
    }
    message = request("cross_entropy", inputs)
    message.data.extend([message.data[0]] * 2)
    monkeypatch.setattr("tinsmith.backend.model.datums.MAX_ELEMENTS", 3 * 6)
    assert len(decode(message)) == 3
    monkeypatch.setattr("tinsmith.backend.model.datums.MAX_ELEMENTS", 3 * 6 - 1)
    with pytest.raises(TinsmithError, match=r"at most 17 target tokens together, and data\[2\]"):
        decode(message)
    assert tensors.MAX_ELEMENTS == 1 << 26


def config(loss: str, old: dict[str, float], new: dict[str, float | str]) -> LossChoice:
    message = pb.ForwardBackwardRequest(loss_fn=loss, loss_fn_config=old)
    for key, value in new.items():
        if isinstance(value, str):
            message.loss_fn_config_v2[key].text = value
        else:
            message.loss_fn_config_v2[key].number = value
    return choose_loss(message)


def test_settings_come_in_the_old_field_or_the_new_which_counts():
    low, high = "clip_low_threshold", "clip_high_threshold"
    assert config("ppo", {}, {}).settings == {low: 0.8, high: 1.2}
    assert config("ppo", {low: 0.5}, {}).settings == {low: 0.5, high: 1.2}
    assert config("ppo", {}, {low: 0.5, high: 1.0}).settings == {low: 0.5, high: 1.0}
    assert config("ppo", {low: 0.5, high: 2.0}, {high: 3.0}).settings == {low: 0.5, high: 3.0}
    assert config("dro", {"beta": 0.0}, {}).settings == {"beta": 0.0}


def test_a_setting_without_a_value_is_refused():
    message = pb.ForwardBackwardRequest(loss_fn="dro")
    message.loss_fn_config_v2["beta"].SetInParent()
    with pytest.raises(TinsmithError, match=r"loss_fn_config.beta: dro needs a number .* got ''"):
        choose_loss(message)


def test_a_substitute_must_make_do_with_the_same_data_and_its_defaults():
    for name in ("cispo", "ppo", "importance_sampling"):
        check_substitutes({"stable_reinforce": name})
    for name in ("cross_entropy", "dro", "gspo", "stable_reinforce"):
        with pytest.raises(TinsmithError, match="must be one of importance_sampling, ppo, cispo"):
            check_substitutes({"stable_reinforce": name})
    with pytest.raises(TinsmithError, match=r"only stable_reinforce .* got 'ppo'"):
        check_substitutes({"ppo": "cispo"})
