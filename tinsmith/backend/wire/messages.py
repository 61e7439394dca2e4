"""From the wire's requests to the sampler's, and from results to the wire's messages."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.trainer import ForwardBackwardResult
from tinsmith.backend.sampling.request import (
    DEFAULT_MAX_TOKENS,
    SamplingRequest,
    SamplingResult,
    TargetTokens,
    TopLogprobs,
)
from tinsmith.backend.wire.requests import SampleRequest, TokenTensor
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings


def sampling_request(
    request: SampleRequest, base: BaseModel, settings: ServerSettings, seed: int
) -> SamplingRequest:
    """Check a sample request and fill in what it leaves open; `seed` is for one that has none.

    `record_stability_info` records nothing: it is taken where another loss stands in for the one
    that would read the record.
    """
    if request.record_stability_info and not settings.substitutes:
        raise TinsmithError(
            "record_stability_info is for the stable_reinforce loss, whose formula is not "
            "published; leave it out and train with another loss, such as cispo, or start the "
            "server with --substitute stable_reinforce=cispo"
        )
    if request.prompt_logprobs_last_n is not None and not request.prompt_logprobs:
        raise TinsmithError("prompt_logprobs_last_n needs prompt_logprobs to be true")
    params = request.sampling_params
    prompt = request.prompt.token_ids()
    max_tokens = params.max_tokens
    if max_tokens is None:
        room = base.context_length - len(prompt) + 1
        max_tokens = max(1, min(DEFAULT_MAX_TOKENS, room))
    stop_token_ids, stop_strings = _stops(params.stop, base)
    sampling = SamplingRequest(
        prompt=prompt,
        num_samples=request.num_samples,
        max_tokens=max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=settings.min_p,
        seed=seed if params.seed is None else params.seed,
        stop_token_ids=stop_token_ids,
        stop_strings=stop_strings,
        wants_prompt_logprobs=bool(request.prompt_logprobs),
        prompt_logprobs_last_n=request.prompt_logprobs_last_n,
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=request.topk_sample_logprobs,
        target_tokens=_target_tokens(request.target_prompt_logprobs),
        prompt_alt_tokens_k=request.prompt_alt_tokens_k,
    )
    sampling.check(base.vocabulary_size, base.context_length)
    return sampling


def _stops(
    stop: str | Sequence[str] | Sequence[int] | None, base: BaseModel
) -> tuple[frozenset[int], tuple[str, ...]]:
    """None stops at the model's end token, an empty list never; strings stand beside neither."""
    if stop is None:
        return frozenset(base.eos_token_ids), ()
    if isinstance(stop, str):
        stop = [stop]
    strings = tuple(item for item in stop if isinstance(item, str))
    if "" in strings:
        raise TinsmithError("sampling_params.stop: a stop string must not be empty")
    return frozenset(item for item in stop if isinstance(item, int)), strings


def _target_tokens(tensor: TokenTensor | None) -> TargetTokens | None:
    """Cells of a tensor [rows, K], in the order of its data."""
    if tensor is None:
        return None
    num_rows, width = tensor.shape
    if tensor.sparse_crow_indices is not None:
        rows = _sparse_rows(tensor, tensor.sparse_crow_indices)
    elif len(tensor.data) == num_rows * width:
        rows = np.repeat(np.arange(num_rows), width)
    else:
        raise TinsmithError(
            f"target_prompt_logprobs: shape {list(tensor.shape)} asks for {num_rows * width} "
            f"values, got {len(tensor.data)}"
        )
    return TargetTokens(rows, np.array(tensor.data, dtype=np.int64), num_rows)


def _sparse_rows(tensor: TokenTensor, crow_indices: list[int]) -> np.ndarray:
    """The row of each value of a sparse tensor."""
    num_rows, width = tensor.shape
    crow, col = np.array(crow_indices), np.array(tensor.sparse_col_indices or [])
    is_valid = (
        len(crow) == num_rows + 1
        and crow[0] == 0
        and bool((np.diff(crow) >= 0).all())
        and crow[-1] == len(col) == len(tensor.data)
        and bool((col < width).all())
    )
    if not is_valid:
        raise TinsmithError(
            "target_prompt_logprobs: sparse_crow_indices must ascend from 0 to the number of "
            "values, with one more than there are rows, and sparse_col_indices must name a column "
            "for each value"
        )
    return np.repeat(np.arange(num_rows), np.diff(crow))


def sample_response(request: SampleRequest, result: SamplingResult) -> bytes:
    """A SampleResponse message."""
    message = pb.SampleResponse()
    for completion in result.sequences:
        sequence = message.sequences.add()
        sequence.tokens = np.asarray(completion.tokens, dtype=np.int32).tobytes()
        sequence.logprobs = np.asarray(completion.logprobs, dtype=np.float32).tobytes()
        sequence.stop_reason = (
            pb.STOP_REASON_STOP if completion.stop_reason == "stop" else pb.STOP_REASON_LENGTH
        )
        if completion.top is not None:
            _fill_top(sequence.topk_sampled_logprobs, completion.top)
    scores = result.prompt
    if scores.logprobs is not None:
        message.prompt_logprobs = scores.logprobs.astype(np.float32).tobytes()
    if scores.top is not None:
        _fill_top(message.topk_prompt_logprobs, scores.top)
    if scores.targets is not None:
        assert request.target_prompt_logprobs is not None
        _fill_like(message.target_prompt_logprobs, request.target_prompt_logprobs, scores.targets)
    if scores.alternatives is not None:
        tokens, logprobs = scores.alternatives
        _fill_dense(message.prompt_alt_tokens.tokens, tokens, pb.DTYPE_INT32)
        _fill_dense(message.prompt_alt_tokens.logprobs, logprobs, pb.DTYPE_FLOAT32)
    return message.SerializeToString()


def _fill_top(message: pb.TopkLogprobs, top: TopLogprobs) -> None:
    message.length, message.k = top.token_ids.shape
    message.token_ids = top.token_ids.astype(np.int32).tobytes()
    message.logprobs = top.logprobs.astype(np.float32).tobytes()


def _fill_like(message: pb.Tensor, asked: TokenTensor, values: np.ndarray) -> None:
    """A float32 tensor of the shape and layout that was asked for."""
    message.dtype = pb.DTYPE_FLOAT32
    message.shape.extend(asked.shape)
    if asked.sparse_crow_indices is None:
        message.dense = values.astype(np.float32).tobytes()
        return
    message.sparse_csr.values = values.astype(np.float32).tobytes()
    message.sparse_csr.crow_indices = np.asarray(asked.sparse_crow_indices, np.int64).tobytes()
    message.sparse_csr.col_indices = np.asarray(asked.sparse_col_indices, np.int64).tobytes()


def _fill_dense(message: pb.Tensor, values: np.ndarray, dtype: pb.DType.ValueType) -> None:
    message.dtype = dtype
    message.shape.extend(values.shape)
    message.dense = values.tobytes()


def forward_backward_output(result: ForwardBackwardResult) -> bytes:
    """A ForwardBackwardOutput message: `logprobs` of the datums behind each other, a record for
    each run of datums with the same number of targets a token."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    for trailing_shape, group in groupby(result.logprobs, key=lambda array: array.shape[1:]):
        arrays = [np.ascontiguousarray(array, dtype=np.float32) for array in group]
        record = message.loss_fn_outputs.add()
        record.num_datums = len(arrays)
        tensor = record.fields["logprobs"]
        tensor.dtype = pb.DTYPE_FLOAT32
        tensor.trailing_shape.extend(trailing_shape)
        tensor.data = b"".join(array.tobytes() for array in arrays)
        ends = np.cumsum([array.nbytes for array in arrays], dtype=np.int64)
        tensor.offsets = np.concatenate([np.zeros(1, np.int64), ends]).tobytes()
    for name, value in result.metrics.items():
        message.metrics[name] = value
    return message.SerializeToString()
