"""Drawing the next token of every row, and its log-probability."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinsmith.backend.sampling.request import SamplingRequest
from tinsmith.errors import TinsmithError

SMALLEST_TEMPERATURE = 1e-30


def choose(
    logits_nV: Tensor, requests: Sequence[SamplingRequest], uniform_n: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Draw one token a row by inverting the cumulated probabilities at `uniform_n` in [0, 1).

    The returned log-probabilities are those of the distribution drawn from: softmax(logits /
    temperature), cut to top_k and top_p and normalised again. A greedy row (temperature 0)
    reports that of temperature 1, since its own is 0 everywhere.
    """
    temperature = [request.temperature or 1.0 for request in requests]
    if any(t != 1.0 for t in temperature):
        # The largest logit becomes 0 first, lest a division by a tiny temperature overflow.
        logits_nV = logits_nV - logits_nV.amax(dim=-1, keepdim=True)
        logits_nV = logits_nV / _column(temperature, logits_nV).clamp(min=SMALLEST_TEMPERATURE)
    logprobs_nV = torch.log_softmax(logits_nV, dim=-1)
    cut = [i for i, request in enumerate(requests) if request.top_k != -1 or request.top_p < 1]
    if cut:
        logprobs_nV[cut] = _truncated(logprobs_nV[cut], [requests[i] for i in cut])
    tokens_n = _invert(logprobs_nV, uniform_n)
    greedy = [i for i, request in enumerate(requests) if request.temperature == 0]
    if greedy:
        tokens_n[greedy] = logprobs_nV[greedy].argmax(dim=-1)
    chosen = logprobs_nV.gather(1, tokens_n[:, None])[:, 0].tolist()
    if any(math.isnan(logprob) for logprob in chosen):
        raise TinsmithError(
            "the model's logits must be finite, got NaN: the weights that are sampled from have "
            "diverged; go back to an earlier checkpoint and lower the learning rate"
        )
    return tokens_n.tolist(), chosen


def _invert(logprobs_nV: Tensor, uniform_n: Sequence[float]) -> Tensor:
    # In float64, since a float32 sum over a large vocabulary loses its last tokens.
    cumulated_nV = logprobs_nV.exp().to(torch.float64).cumsum(dim=-1)
    total_n1 = cumulated_nV[:, -1:]
    # u * total can round up to the total itself; a token with some probability is meant.
    below_n1 = torch.nextafter(total_n1, torch.zeros_like(total_n1))
    threshold_n1 = torch.minimum(_column(uniform_n, total_n1) * total_n1, below_n1)
    tokens_n = torch.searchsorted(cumulated_nV, threshold_n1, right=True)[:, 0]
    return tokens_n.clamp(max=logprobs_nV.shape[1] - 1)  # a NaN is found behind the last token


def _truncated(logprobs_nV: Tensor, requests: Sequence[SamplingRequest]) -> Tensor:
    """Keep the top_k likeliest tokens, and of these the fewest whose probability reaches top_p
    (Holtzman et al. 2020); normalise what is left. Ties go to the smaller token id."""
    size = logprobs_nV.shape[1]
    sorted_nV, order_nV = logprobs_nV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(size, device=logprobs_nV.device)
    top_k = [size if request.top_k == -1 else request.top_k for request in requests]
    dropped_nV = rank_V >= _column(top_k, rank_V)
    kept_nV = torch.log_softmax(sorted_nV.masked_fill(dropped_nV, -torch.inf), dim=-1)
    mass_before_nV = kept_nV.exp().cumsum(dim=-1) - kept_nV.exp()
    top_p_n1 = _column([request.top_p for request in requests], kept_nV)
    beyond_nV = (mass_before_nV >= top_p_n1) & (top_p_n1 < 1)
    beyond_nV[:, 0] = False
    final_nV = torch.log_softmax(kept_nV.masked_fill(beyond_nV, -torch.inf), dim=-1)
    return torch.empty_like(logprobs_nV).scatter_(1, order_nV, final_nV)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
