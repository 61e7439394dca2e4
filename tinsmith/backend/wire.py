"""From the wire's requests to the sampler's, and from results to the wire's messages."""

import random
from collections.abc import Sequence

import numpy as np
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.base_model import BaseModel
from tinsmith.backend.requests import SampleRequest
from tinsmith.backend.sampling.request import (
    DEFAULT_MAX_TOKENS,
    SamplingRequest,
    SamplingResult,
)
from tinsmith.backend.trainer import ForwardBackwardResult
from tinsmith.errors import TinsmithError

NOT_COMPUTED = (
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
    "record_stability_info",
)


def sampling_request(request: SampleRequest, base: BaseModel) -> SamplingRequest:
    """Check a sample request and fill in what it leaves open."""
    for field in NOT_COMPUTED:
        if getattr(request, field):
            raise TinsmithError(
                f"{field} is not computed by this server; leave it out "
                "(prompt_logprobs gives the log-probabilities of the prompt's own tokens)"
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
        seed=random.SystemRandom().getrandbits(63) if params.seed is None else params.seed,
        stop_token_ids=stop_token_ids,
        stop_strings=stop_strings,
        wants_prompt_logprobs=bool(request.prompt_logprobs),
        prompt_logprobs_last_n=request.prompt_logprobs_last_n,
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


def sample_response(result: SamplingResult) -> bytes:
    """A SampleResponse message."""
    message = pb.SampleResponse()
    for completion in result.sequences:
        sequence = message.sequences.add()
        sequence.tokens = np.asarray(completion.tokens, dtype=np.int32).tobytes()
        sequence.logprobs = np.asarray(completion.logprobs, dtype=np.float32).tobytes()
        sequence.stop_reason = (
            pb.STOP_REASON_STOP if completion.stop_reason == "stop" else pb.STOP_REASON_LENGTH
        )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = result.prompt_logprobs.astype(np.float32).tobytes()
    return message.SerializeToString()


def forward_backward_output(result: ForwardBackwardResult) -> bytes:
    """A ForwardBackwardOutput message: one record, `logprobs` of every datum behind each other."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    record = message.loss_fn_outputs.add()
    record.num_datums = len(result.logprobs)
    tensor = record.fields["logprobs"]
    tensor.dtype = pb.DTYPE_FLOAT32
    arrays = [np.ascontiguousarray(array, dtype=np.float32) for array in result.logprobs]
    tensor.data = b"".join(array.tobytes() for array in arrays)
    ends = np.cumsum([array.nbytes for array in arrays], dtype=np.int64)
    tensor.offsets = np.concatenate([np.zeros(1, np.int64), ends]).tobytes()
    for name, value in result.metrics.items():
        message.metrics[name] = value
    return message.SerializeToString()
