"""The losses of the Tinker API, as sums over tokens (not means).

Each takes the trainer's log-probabilities of the target tokens, the datum's tensors and the loss's
settings, and returns a scalar to be minimised. Everything is of shape [N] over the tokens of a
batch, for `cross_entropy` also [N, K]. p is the trainer, q the sampler, A the advantages, and
r_t = p(x_t) / q(x_t). The formulas are those of the Tinker documentation, page "Loss functions".
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Settings = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """A number that a loss is configured by, from `lowest` to `highest`. Without a default it must
    be given, and `hint` helps to choose it."""

    lowest: float
    highest: float
    default: float | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and what it needs.

    `inputs` are the tensors that a datum brings beside `target_tokens`. Where `coefficient`, one of
    them, is zero, a token has no gradient; None if every token may have one. `prepare` makes
    further inputs from the log-probabilities of whole sequences, with no gradient through them.
    """

    compute: Callable[[Tensor, Inputs, Settings], Tensor]
    inputs: tuple[str, ...]
    coefficient: str | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    takes_alternatives: bool = False
    prepare: Callable[[Tensor, Inputs, Tensor], dict[str, Tensor]] | None = None


def cross_entropy(logprobs: Tensor, inputs: Inputs, _: Settings) -> Tensor:
    """L = -sum_t w_t log p(x_t), or with K targets a token -sum_t sum_k w_tk log p(x_tk).

    Weights of any sign are honoured. Teacher probabilities as w_tk make top-k distillation.
    """
    return _loss(inputs["weights"] * logprobs)


def importance_sampling(logprobs_N: Tensor, inputs: Inputs, _: Settings) -> Tensor:
    """L = -sum_t r_t A_t."""
    return _loss(_ratios(logprobs_N, inputs) * inputs["advantages"])


def ppo(logprobs_N: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """L = -sum_t min(r_t A_t, clip(r_t, low, high) A_t) (Schulman et al. 2017, eq. 7).

    The settings bound the ratio itself: 0.8 and 1.2 are the paper's epsilon of 0.2.
    """
    return _clipped(_ratios(logprobs_N, inputs), inputs, settings)


def cispo(logprobs_N: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """L = -sum_t sg[clip(r_t, low, high)] A_t log p(x_t), sg stopping the gradient.

    MiniMax 2025, "MiniMax-M1" (arXiv 2506.13585), eq. 4: no token loses its gradient.
    """
    low, high = _bounds(settings)
    weights_N = _ratios(logprobs_N.detach(), inputs).clamp(low, high)
    return _loss(weights_N * inputs["advantages"] * logprobs_N)


def dro(logprobs_N: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """L = -sum_t (A_t log p(x_t) - beta / 2 (log r_t)^2).

    Richemond et al. 2024 (arXiv 2405.19107), token by token. The penalty is on every token, also
    where the advantage is zero.
    """
    log_ratios_N = logprobs_N - inputs["logprobs"]
    gains_N = inputs["advantages"] * logprobs_N
    return _loss(gains_N - 0.5 * settings["beta"] * log_ratios_N**2)


def gspo(logprobs_N: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    """L = -sum_t min(s_t A_t, clip(s_t, low, high) A_t), s_t = sg[s] p(x_t) / sg[p(x_t)].

    s is the ratio of t's whole sequence, see `sequence_log_ratios`. Zheng et al. 2025 (arXiv
    2507.18071), eq. 13 and 14: GSPO-token.
    """
    ratios_N = torch.exp(inputs["sequence_log_ratios"] + (logprobs_N - logprobs_N.detach()))
    return _clipped(ratios_N, inputs, settings)


def sequence_log_ratios(logprobs_N: Tensor, inputs: Inputs, rows_N: Tensor) -> dict[str, Tensor]:
    """log s = mean of log r_t over the tokens of t's sequence that `sequence_ratio_mask` marks.

    `rows_N` numbers the sequence of each token from 0. Zheng et al. 2025, eq. 7.
    """
    is_counted_N = inputs["sequence_ratio_mask"] != 0
    log_ratios_N = torch.where(is_counted_N, logprobs_N - inputs["logprobs"], 0.0)
    sums_R = log_ratios_N.new_zeros(int(rows_N.max()) + 1).index_add_(0, rows_N, log_ratios_N)
    counts_R = torch.zeros_like(sums_R).index_add_(0, rows_N, is_counted_N.to(sums_R.dtype))
    return {"sequence_log_ratios": (sums_R / counts_R)[rows_N]}


def _loss(gains: Tensor) -> Tensor:
    """Summed in float64: gains of both signs cancel."""
    return -gains.sum(dtype=torch.float64)


def _ratios(logprobs_N: Tensor, inputs: Inputs) -> Tensor:
    return torch.exp(logprobs_N - inputs["logprobs"])


def _clipped(ratios_N: Tensor, inputs: Inputs, settings: Settings) -> Tensor:
    advantages_N = inputs["advantages"]
    low, high = _bounds(settings)
    return _loss(torch.minimum(ratios_N * advantages_N, ratios_N.clamp(low, high) * advantages_N))


def _bounds(settings: Settings) -> tuple[float, float]:
    return settings["clip_low_threshold"], settings["clip_high_threshold"]


def _clip_settings(low: float | None, high: float | None, hint: str = "") -> dict[str, Setting]:
    return {
        "clip_low_threshold": Setting(0.0, 1.0, low, hint),
        "clip_high_threshold": Setting(1.0, math.inf, high, hint),
    }


POLICY = ("logprobs", "advantages")
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, ("weights",), "weights", takes_alternatives=True),
    "importance_sampling": Loss(importance_sampling, POLICY, "advantages"),
    "ppo": Loss(ppo, POLICY, "advantages", _clip_settings(0.8, 1.2)),
    "cispo": Loss(cispo, POLICY, "advantages", _clip_settings(0.0, 4.0)),
    "dro": Loss(
        dro, POLICY, None, {"beta": Setting(0.0, math.inf, None, "Tinker's example has 0.05")}
    ),
    "gspo": Loss(
        gspo,
        (*POLICY, "sequence_ratio_mask"),
        "advantages",
        # A sequence's ratio moves far less than a token's: PPO's bounds would do nothing here.
        _clip_settings(None, None, "the paper's bounds are 0.9997 and 1.0004"),
        prepare=sequence_log_ratios,
    ),
}
