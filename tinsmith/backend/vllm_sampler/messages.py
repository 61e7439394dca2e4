"""From sampling requests to an engine's orders, and from its answers to results."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinsmith.backend.sampling.choose import refuse_diverged
from tinsmith.backend.sampling.request import (
    EMPTY,
    Completion,
    PromptScores,
    SamplingRequest,
    TopLogprobs,
)
from tinsmith.backend.vllm_sampler.residents import Resident

# What vLLM computes as asked: it moves lower temperatures up and refuses higher ones.
TEMPERATURES = (0.01, 2.0)


def is_for_vllm(request: SamplingRequest) -> bool:
    """Whether vLLM draws what a request asks for as the server promises it; the others are left to
    the trainer's own model."""
    low, high = TEMPERATURES
    temperature = request.temperature
    return low <= temperature <= high or (temperature == 0 and not request.is_truncated)


def has_scores_beyond_vllm(request: SamplingRequest) -> bool:
    """Whether a request also asks of its prompt what the trainer's own model has to answer."""
    return request.target_tokens is not None or request.prompt_alt_tokens_k > 0


def sample_order(
    order_id: int, resident: Resident, request: SamplingRequest, samples: Sequence[int]
) -> dict[str, Any]:
    """The order to draw `samples` of a request from the weights of `resident`.

    Its salt keeps what was computed with other weights out of the prefix cache. The first sample
    also scores the prompt.
    """
    scores = _prompt_k(request) if 0 in samples else None
    return {
        "do": "sample",
        "id": order_id,
        "number": resident.number,
        "salt": resident.salt,
        "prompt": list(request.prompt),
        "samples": [(sample, seed_of(request.seed, sample)) for sample in samples],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "stop_token_ids": sorted(request.stop_token_ids),
        "stop_strings": list(request.stop_strings),
        "topk_sample_logprobs": request.topk_sample_logprobs,
        "topk_prompt_logprobs": scores,
    }


def seed_of(seed: int, sample: int) -> int:
    """A stream of its own for each sample of each seed, whatever is drawn beside it."""
    digest = hashlib.blake2b(f"{seed % 2**64}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def completion_of(answer: dict[str, Any]) -> Completion:
    """A completion; refused if the weights have diverged."""
    refuse_diverged(np.asarray(answer["logprobs"]))
    top = None
    if "top_ids" in answer:
        top = _top(answer["top_ids"], answer["top_logprobs"])
    return Completion(answer["tokens"], answer["logprobs"], answer["reason"], top)


def prompt_scores_of(request: SamplingRequest, answer: dict[str, Any]) -> PromptScores:
    """What was asked of the prompt, at temperature 1."""
    if _prompt_k(request) is None:
        return PromptScores()
    size, k, last_n = (
        len(request.prompt),
        request.topk_prompt_logprobs,
        request.prompt_logprobs_last_n,
    )
    first = 1 if last_n is None else size - last_n
    logprobs = top = None
    if request.wants_prompt_logprobs:
        logprobs = np.full(size, np.nan, np.float32)
        logprobs[first:] = answer["prompt_logprobs"][first - 1 :]
    if k:
        top = TopLogprobs(np.zeros((size, k), np.int32), np.full((size, k), EMPTY, np.float32))
        if size > 1:
            found = _top(answer["prompt_top_ids"], answer["prompt_top_logprobs"])
            top.token_ids[first:] = found.token_ids[first - 1 :]
            top.logprobs[first:] = found.logprobs[first - 1 :]
    return PromptScores(logprobs, top)


def _prompt_k(request: SamplingRequest) -> int | None:
    is_asked = request.wants_prompt_logprobs or request.topk_prompt_logprobs
    return request.topk_prompt_logprobs if is_asked else None


def _top(ids: list[list[int]], logprobs: list[list[float]]) -> TopLogprobs:
    """Likeliest first, of equal ones the smaller id; a token of probability 0 leaves its cell."""
    ids_Nk, values_Nk = np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)
    order_Nk = np.lexsort((ids_Nk, -values_Nk), axis=-1)
    ids_Nk = np.take_along_axis(ids_Nk, order_Nk, axis=-1)
    values_Nk = np.take_along_axis(values_Nk, order_Nk, axis=-1)
    is_empty = np.isneginf(values_Nk)
    return TopLogprobs(np.where(is_empty, 0, ids_Nk), np.where(is_empty, EMPTY, values_Nk))
