"""The data of a forward_backward request, decoded and checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.errors import TinsmithError
from tinsmith.objectives.losses import LOSSES

# Losses that the Tinker API names and this server does not compute (yet or at all).
OTHER_TINKER_LOSSES = ("ppo", "cispo", "dro", "gspo", "stable_reinforce", "custom")
NUMPY_DTYPES = {pb.DTYPE_FLOAT32: np.dtype(np.float32), pb.DTYPE_INT64: np.dtype(np.int64)}


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence: token ids [T], the tokens to predict [T], and the loss's tensors [T]."""

    tokens: np.ndarray
    target_tokens: np.ndarray
    loss_inputs: Mapping[str, np.ndarray]


def decode_datums(
    request: pb.ForwardBackwardRequest, vocabulary_size: int, context_length: int
) -> list[Datum]:
    """Decode a request's datums, or say which datum and field breaks which rule."""
    check_loss(request.loss_fn, [*request.loss_fn_config, *request.loss_fn_config_v2])
    if not request.data:
        raise TinsmithError("data: forward_backward needs at least one datum, got 0")
    return [
        _decode(f"data[{i}]", datum, request.loss_fn, vocabulary_size, context_length)
        for i, datum in enumerate(request.data)
    ]


def check_loss(name: str, config_keys: Sequence[str]) -> None:
    """Refuse a loss that is unknown or not computed here, and settings that it does not have."""
    known = ", ".join(LOSSES)
    if name in OTHER_TINKER_LOSSES:
        raise TinsmithError(f"loss_fn {name!r} is not computed by this server; use one of: {known}")
    if name not in LOSSES:
        raise TinsmithError(f"loss_fn {name!r} is unknown to the Tinker API; use one of: {known}")
    if config_keys:
        raise TinsmithError(
            f"loss_fn_config: {name} has no settings, got {', '.join(sorted(set(config_keys)))}"
        )


def _decode(
    where: str, datum: pb.Datum, loss: str, vocabulary_size: int, context_length: int
) -> Datum:
    tokens = _decode_tokens(where, datum.model_input)
    if not 1 <= len(tokens) <= context_length:
        raise TinsmithError(
            f"{where}.model_input: must hold 1 to {context_length} tokens (the model's context), "
            f"got {len(tokens)}"
        )
    wanted = ("target_tokens", *LOSSES[loss].inputs)
    _check_names(where, loss, wanted, list(datum.loss_fn_inputs))
    arrays = {
        name: _decode_tensor(f"{where}.loss_fn_inputs.{name}", datum.loss_fn_inputs[name])
        for name in wanted
    }
    for name, array in arrays.items():
        if array.shape != tokens.shape:
            raise TinsmithError(
                f"{where}.loss_fn_inputs.{name}: must have one value per token of model_input, "
                f"shape {list(tokens.shape)}, got {list(array.shape)}"
            )
    targets = arrays.pop("target_tokens")
    if targets.dtype.kind != "i":
        raise TinsmithError(
            f"{where}.loss_fn_inputs.target_tokens: dtype must be int64, got {targets.dtype}"
        )
    _check_token_range(f"{where}.model_input", tokens, vocabulary_size)
    _check_token_range(f"{where}.loss_fn_inputs.target_tokens", targets, vocabulary_size)
    return Datum(tokens, targets.astype(np.int64), arrays)


def _decode_tokens(where: str, chunks: Sequence[pb.Chunk]) -> np.ndarray:
    for i, chunk in enumerate(chunks):
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise TinsmithError(
                f"{where}.model_input[{i}]: only text chunks are supported, "
                f"got {chunk.WhichOneof('chunk')}"
            )
    parts = [np.frombuffer(chunk.encoded_text.tokens, dtype=np.int32) for chunk in chunks]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _check_names(where: str, loss: str, wanted: Sequence[str], given: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in given]:
        raise TinsmithError(f"{where}.loss_fn_inputs: {loss} needs {', '.join(missing)}")
    if surplus := sorted(set(given) - set(wanted)):
        raise TinsmithError(
            f"{where}.loss_fn_inputs: {loss} takes {', '.join(wanted)}, not {', '.join(surplus)}"
        )


def _decode_tensor(where: str, tensor: pb.Tensor) -> np.ndarray:
    dtype = NUMPY_DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TinsmithError(f"{where}: dtype must be float32 or int64, got {tensor.dtype}")
    if tensor.WhichOneof("encoding") == "sparse_csr" or len(tensor.shape) > 1:
        raise TinsmithError(f"{where}: must be a dense 1-D tensor, got shape {list(tensor.shape)}")
    array = np.frombuffer(tensor.dense, dtype=dtype)
    if dtype.kind == "f" and not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        raise TinsmithError(
            f"{where}[{position}]: must be finite, got {array[position]}; nothing was accumulated"
        )
    return array


def _check_token_range(where: str, tokens: np.ndarray, vocabulary_size: int) -> None:
    if ((tokens < 0) | (tokens >= vocabulary_size)).any():
        position = int(np.flatnonzero((tokens < 0) | (tokens >= vocabulary_size))[0])
        raise TinsmithError(
            f"{where}[{position}]: token ids must be 0 to {vocabulary_size - 1}, "
            f"got {tokens[position]}"
        )
