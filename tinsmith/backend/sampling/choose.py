"""Drawing the next token of every row, and its log-probability."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinsmith.backend.compiled import drawing
from tinsmith.backend.compiled.threads import runs_compiled
from tinsmith.backend.sampling.request import EMPTY, SamplingRequest, TopLogprobs
from tinsmith.errors import TinsmithError

SMALLEST_TEMPERATURE = 1e-30


@dataclass(frozen=True, slots=True)
class Choice:
    """k tokens drawn for each of n rows, their log-probabilities, and for the rows that asked for
    it the likeliest tokens of the distribution that was drawn from."""

    tokens_nk: np.ndarray
    logprobs_nk: np.ndarray
    top: list[TopLogprobs | None]


def choose(
    logits_nV: Tensor, requests: Sequence[SamplingRequest], uniform_nk: np.ndarray
) -> Choice:
    """Draw tokens for each row by inverting its cumulated probabilities at `uniform_nk` in [0, 1).

    The returned log-probabilities are those of the distribution drawn from: softmax(logits /
    temperature), cut to min_p, top_k and top_p and normalised again. A greedy row (temperature 0)
    reports that of temperature 1, since its own is 0 everywhere.
    """
    choice = Choice(
        np.empty(uniform_nk.shape, np.int64),
        np.empty(uniform_nk.shape, np.float32),
        [None] * len(requests),
    )
    # Each row by its own way, whatever is beside it.
    is_plain = np.array([runs_compiled(logits_nV) and _is_plain(request) for request in requests])
    for choose_rows, is_own in ((_choose_compiled, is_plain), (_choose_among_all, ~is_plain)):
        rows = np.flatnonzero(is_own).tolist()
        if not rows:
            continue
        logits = logits_nV if is_own.all() else logits_nV[rows]
        own = choose_rows(logits, [requests[i] for i in rows], uniform_nk[rows])
        choice.tokens_nk[rows], choice.logprobs_nk[rows] = own.tokens_nk, own.logprobs_nk
        for i, top in zip(rows, own.top, strict=True):
            choice.top[i] = top
    refuse_diverged(choice.logprobs_nk)
    return choice


def _is_plain(request: SamplingRequest) -> bool:
    """Whether nothing is wanted of the distribution but a token and its log-probability."""
    return not (request.is_truncated or request.topk_sample_logprobs)


def _choose_compiled(
    logits_nV: Tensor, requests: Sequence[SamplingRequest], uniform_nk: np.ndarray
) -> Choice:
    temperatures = [r.temperature and max(r.temperature, SMALLEST_TEMPERATURE) for r in requests]
    uniform = torch.from_numpy(np.asarray(uniform_nk, np.float64))
    tokens_nk, chosen_nk = drawing.draw_tokens(
        logits_nV, torch.tensor(temperatures, dtype=torch.float32), uniform
    )
    return Choice(tokens_nk.numpy(), chosen_nk.numpy(), [None] * len(requests))


def _choose_among_all(
    logits_nV: Tensor, requests: Sequence[SamplingRequest], uniform_nk: np.ndarray
) -> Choice:
    temperature = [request.temperature for request in requests]
    logprobs_nV = tempered_logprobs(logits_nV, temperature)
    cut = [i for i, request in enumerate(requests) if request.is_truncated]
    if cut:
        logprobs_nV[cut] = _truncated(logprobs_nV[cut], [requests[i] for i in cut])
    tokens_nk = draw(logprobs_nV, temperature, uniform_nk)
    chosen_nk = logprobs_nV.gather(1, tokens_nk).cpu().numpy()
    return Choice(tokens_nk.cpu().numpy(), chosen_nk, _top_of_rows(logprobs_nV, requests))


def refuse_diverged(logprobs: np.ndarray) -> None:
    """Refuse the log-probabilities of weights that have become useless."""
    if np.isnan(logprobs).any():
        raise TinsmithError(
            "the model's logits must be finite, got NaN: the weights that are sampled from have "
            "diverged; go back to an earlier checkpoint and lower the learning rate"
        )


def tempered_logprobs(logits_nV: Tensor, temperatures: Sequence[float]) -> Tensor:
    """log softmax(logits / temperature) of each row; temperature 0 counts as 1."""
    divisors = [temperature or 1.0 for temperature in temperatures]
    if any(divisor != 1.0 for divisor in divisors):
        # The largest logit becomes 0 first, lest a division by a tiny temperature overflow.
        logits_nV = logits_nV - logits_nV.amax(dim=-1, keepdim=True)
        logits_nV = logits_nV / _column(divisors, logits_nV).clamp(min=SMALLEST_TEMPERATURE)
    return torch.log_softmax(logits_nV, dim=-1)


def draw(logprobs_nV: Tensor, temperatures: Sequence[float], uniform_nk: np.ndarray) -> Tensor:
    """Token ids [n, k] at `uniform_nk`; rows of temperature 0 take their likeliest token."""
    # In float64, since a float32 sum over a large vocabulary loses its last tokens.
    cumulated_nV = logprobs_nV.exp().to(torch.float64).cumsum(dim=-1)
    total_n1 = cumulated_nV[:, -1:]
    # u * total can round up to the total itself; a token with some probability is meant.
    below_n1 = torch.nextafter(total_n1, torch.zeros_like(total_n1))
    uniform = torch.from_numpy(np.asarray(uniform_nk, np.float64)).to(total_n1.device)
    tokens_nk = torch.searchsorted(
        cumulated_nV, torch.minimum(uniform * total_n1, below_n1), right=True
    )
    tokens_nk = tokens_nk.clamp(max=logprobs_nV.shape[1] - 1)  # a NaN is found behind the last
    greedy = [i for i, temperature in enumerate(temperatures) if temperature == 0]
    if greedy:
        tokens_nk[greedy] = logprobs_nV[greedy].argmax(dim=-1, keepdim=True)
    return tokens_nk


def top_logprobs(logprobs_NV: Tensor, k: int) -> TopLogprobs:
    """The k likeliest tokens of each row; of equal ones the smaller id first. A token of
    probability 0 leaves its cell empty."""
    values_Nk, ids_Nk = logprobs_NV.topk(k, dim=-1)
    ids_Nk, by_id = ids_Nk.sort(dim=-1)
    values_Nk, by_value = values_Nk.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    ids_Nk = ids_Nk.gather(1, by_value).masked_fill(values_Nk == -torch.inf, 0)
    values_Nk = values_Nk.masked_fill(values_Nk == -torch.inf, EMPTY)
    return TopLogprobs(ids_Nk.cpu().numpy().astype(np.int32), values_Nk.cpu().numpy())


def _top_of_rows(
    logprobs_nV: Tensor, requests: Sequence[SamplingRequest]
) -> list[TopLogprobs | None]:
    top: list[TopLogprobs | None] = [None] * len(requests)
    rows = [i for i, request in enumerate(requests) if request.topk_sample_logprobs]
    if rows:
        widest = max(requests[i].topk_sample_logprobs for i in rows)
        found = top_logprobs(logprobs_nV[rows], widest)
        for i, ids, values in zip(rows, found.token_ids, found.logprobs, strict=True):
            k = requests[i].topk_sample_logprobs
            top[i] = TopLogprobs(ids[None, :k], values[None, :k])
    return top


def _truncated(logprobs_nV: Tensor, requests: Sequence[SamplingRequest]) -> Tensor:
    """Keep the tokens whose probability is at least min_p times the largest (Nguyen et al. 2024),
    of these the top_k likeliest, and of these the fewest whose probability reaches top_p (Holtzman
    et al. 2020); normalise what is left. Ties of top_k and top_p go to the smaller token id."""
    size = logprobs_nV.shape[1]
    sorted_nV, order_nV = logprobs_nV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(size, device=logprobs_nV.device)
    top_k = [size if request.top_k == -1 else request.top_k for request in requests]
    dropped_nV = rank_V >= _column(top_k, rank_V)
    # log 0 is -inf, below which nothing lies.
    floor_n1 = sorted_nV[:, :1] + _column([request.min_p for request in requests], sorted_nV).log()
    dropped_nV |= sorted_nV < floor_n1
    kept_nV = torch.log_softmax(sorted_nV.masked_fill(dropped_nV, -torch.inf), dim=-1)
    mass_before_nV = kept_nV.exp().cumsum(dim=-1) - kept_nV.exp()
    top_p_n1 = _column([request.top_p for request in requests], kept_nV)
    beyond_nV = (mass_before_nV >= top_p_n1) & (top_p_n1 < 1)
    beyond_nV[:, 0] = False
    final_nV = torch.log_softmax(kept_nV.masked_fill(beyond_nV, -torch.inf), dim=-1)
    return torch.empty_like(logprobs_nV).scatter_(1, order_nV, final_nV)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
