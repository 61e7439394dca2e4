"""The data of a forward_backward request, decoded and checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.tensors import MAX_ELEMENTS, decode_array, decode_tensor
from tinsmith.errors import TinsmithError


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence: token ids [T], the tokens to predict [T] (or K for each, [T, K]), and the
    loss's tensors in the shape of the latter."""

    tokens: np.ndarray
    target_tokens: np.ndarray
    loss_inputs: Mapping[str, np.ndarray]

    def suffix(self, size: int) -> "Datum":
        """Its last `size` tokens."""
        inputs = {name: array[-size:] for name, array in self.loss_inputs.items()}
        return Datum(self.tokens[-size:], self.target_tokens[-size:], inputs)


def decode_datums(
    request: pb.ForwardBackwardRequest,
    choice: LossChoice,
    vocabulary_size: int,
    context_length: int,
) -> list[Datum]:
    """Decode a request's datums, or say which datum and field breaks which rule.

    The provenance spans of a datum (model_input_spans, loss_fn_input_spans) are not read: they
    say where tokens were sampled, which no loss that is computed here asks for.
    """
    if not request.data:
        raise TinsmithError("data: forward_backward needs at least one datum, got 0")
    data, num_targets = [], 0
    for i, message in enumerate(request.data):
        datum = _decode(f"data[{i}]", message, choice, vocabulary_size, context_length)
        num_targets += datum.target_tokens.size
        if num_targets > MAX_ELEMENTS:
            raise TinsmithError(
                f"data: must have at most {MAX_ELEMENTS} target tokens together, and data[{i}] "
                "passes that; send fewer datums at once, gradients add up until optim_step"
            )
        data.append(datum)
    return data


def _decode(
    where: str, datum: pb.Datum, choice: LossChoice, vocabulary_size: int, context_length: int
) -> Datum:
    tokens = _decode_tokens(where, datum.model_input)
    if not 1 <= len(tokens) <= context_length:
        raise TinsmithError(
            f"{where}.model_input: must hold 1 to {context_length} tokens (the model's context), "
            f"got {len(tokens)}"
        )
    names = ("target_tokens", *choice.loss.inputs)
    _check_names(where, choice.name, names, list(datum.loss_fn_inputs))
    arrays = {
        name: decode_tensor(f"{where}.loss_fn_inputs.{name}", datum.loss_fn_inputs[name])
        for name in names
    }
    _check_shapes(f"{where}.loss_fn_inputs", arrays, len(tokens), choice)
    targets = arrays.pop("target_tokens")
    if targets.dtype.kind != "i":
        raise TinsmithError(
            f"{where}.loss_fn_inputs.target_tokens: dtype must be int64, got {targets.dtype}"
        )
    _check_token_range(f"{where}.model_input", tokens, vocabulary_size)
    _check_token_range(f"{where}.loss_fn_inputs.target_tokens", targets, vocabulary_size)
    if "sequence_ratio_mask" in arrays and not arrays["sequence_ratio_mask"].any():
        raise TinsmithError(
            f"{where}.loss_fn_inputs.sequence_ratio_mask: must mark at least one token (with 1), "
            "since the sequence's ratio is a mean over those marked; leave the datum out"
        )
    return Datum(tokens, targets, {k: v.astype(np.float32) for k, v in arrays.items()})


def _decode_tokens(where: str, chunks: Sequence[pb.Chunk]) -> np.ndarray:
    parts = []
    for i, chunk in enumerate(chunks):
        field = f"{where}.model_input[{i}]"
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise TinsmithError(
                f"{field}: only text chunks are supported, got {chunk.WhichOneof('chunk')}"
            )
        parts.append(decode_array(field, chunk.encoded_text.tokens, np.dtype(np.int32)))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _check_names(where: str, loss: str, wanted: Sequence[str], given: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in given]:
        raise TinsmithError(f"{where}.loss_fn_inputs: {loss} needs {', '.join(missing)}")
    if surplus := sorted(set(given) - set(wanted)):
        raise TinsmithError(
            f"{where}.loss_fn_inputs: {loss} takes {', '.join(wanted)}, not {', '.join(surplus)}"
        )


def _check_shapes(
    where: str, arrays: Mapping[str, np.ndarray], num_tokens: int, choice: LossChoice
) -> None:
    targets = arrays["target_tokens"]
    if choice.loss.takes_alternatives and targets.ndim == 2 and targets.shape[1] > 0:
        wanted, rule = (num_tokens, targets.shape[1]), "as many values per token as target_tokens"
    else:
        wanted, rule = (num_tokens,), "one value per token of model_input"
    for name, array in arrays.items():
        if array.shape != wanted:
            raise TinsmithError(
                f"{where}.{name}: must have {rule}, shape {list(wanted)}, got {list(array.shape)}"
            )


def _check_token_range(where: str, tokens: np.ndarray, vocabulary_size: int) -> None:
    is_outside = (tokens < 0) | (tokens >= vocabulary_size)
    if is_outside.any():
        position = tuple(int(i) for i in np.argwhere(is_outside)[0])
        raise TinsmithError(
            f"{where}[{', '.join(map(str, position))}]: token ids must be 0 to "
            f"{vocabulary_size - 1}, got {tokens[position]}"
        )
