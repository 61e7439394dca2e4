"""From sampling requests to an engine's orders, and from its answers to results."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
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


def is_for_vllm(request: SamplingRequest, *, merges: bool) -> bool:
    """Whether vLLM draws what a request asks for as the server promises it; the others are left to
    the trainer's own model, and so are those that it has to score and that draw a single token."""
    if not merges and request.max_tokens == 1 and _wants_scores(request):
        return False
    low, high = TEMPERATURES
    temperature = request.temperature
    return low <= temperature <= high or (temperature == 0 and not request.is_truncated)


def parts_of(
    request: SamplingRequest, *, merges: bool
) -> tuple[SamplingRequest, SamplingRequest] | None:
    """A request in two, where it asks of its prompt what vLLM does not answer: the part that the
    trainer's own model scores, and what vLLM draws; None if vLLM answers all of it.

    Adapters that are not merged vLLM applies to the unembedding of sampled rows alone: with other
    requests beside it a prompt would be scored without its adapter, or by another's.
    """
    is_beyond = request.target_tokens is not None or request.prompt_alt_tokens_k > 0
    if not is_beyond and (merges or not _wants_scores(request)):
        return None
    drawn = replace(request, target_tokens=None, prompt_alt_tokens_k=0)
    scored = replace(request, num_samples=1, max_tokens=1, topk_sample_logprobs=0)
    if merges:
        return _without_scores(scored), drawn
    return scored, _without_scores(drawn)


def joined(one: PromptScores, other: PromptScores) -> PromptScores:
    """The scores of both parts of a request, each of which has what the other lacks."""
    names = [field.name for field in fields(PromptScores)]
    found = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return PromptScores(**{k: a if a is not None else b for k, (a, b) in found.items()})


def _wants_scores(request: SamplingRequest) -> bool:
    return request.wants_prompt_logprobs or request.topk_prompt_logprobs > 0


def _without_scores(request: SamplingRequest) -> SamplingRequest:
    return replace(
        request, wants_prompt_logprobs=False, prompt_logprobs_last_n=None, topk_prompt_logprobs=0
    )


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
        top = top_of(answer)
    return Completion(answer["tokens"], answer["logprobs"], answer["reason"], top)


def top_of(answer: dict[str, Any]) -> TopLogprobs:
    """The likeliest tokens of each position of a completion, which were asked for."""
    return _top(answer["top_ids"], answer["top_logprobs"])


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
    return request.topk_prompt_logprobs if _wants_scores(request) else None


def _top(ids: list[list[int]], logprobs: list[list[float]]) -> TopLogprobs:
    """Likeliest first, of equal ones the smaller id; a token of probability 0 leaves its cell."""
    ids_Nk, values_Nk = np.asarray(ids, np.int32), np.asarray(logprobs, np.float32)
    order_Nk = np.lexsort((ids_Nk, -values_Nk), axis=-1)
    ids_Nk = np.take_along_axis(ids_Nk, order_Nk, axis=-1)
    values_Nk = np.take_along_axis(values_Nk, order_Nk, axis=-1)
    is_empty = np.isneginf(values_Nk)
    return TopLogprobs(np.where(is_empty, 0, ids_Nk), np.where(is_empty, EMPTY, values_Nk))
