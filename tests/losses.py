"""Every loss a second time: token by token in float64, with the cases of the clips written out."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.datums import cross_entropy_data, gspo_data, policy_data, top_k_data
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.loss_choice import LossChoice

PPO = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
CISPO = {"clip_low_threshold": 0.3, "clip_high_threshold": 2.0}
GSPO = {"clip_low_threshold": 0.6, "clip_high_threshold": 1.1}
CASES: dict[str, tuple[LossChoice, Callable[..., list[Datum]]]] = {
    "cross_entropy": (LossChoice("cross_entropy"), cross_entropy_data),
    "cross_entropy with 3 targets": (LossChoice("cross_entropy"), top_k_data),
    "importance_sampling": (LossChoice("importance_sampling"), policy_data),
    "ppo": (LossChoice("ppo", PPO), policy_data),
    "cispo": (LossChoice("cispo", CISPO), policy_data),
    "dro": (LossChoice("dro", {"beta": 0.3}), policy_data),
    "gspo": (LossChoice("gspo", GSPO), gspo_data),
}


def reference_loss(choice: LossChoice, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """The loss of one sequence, from float64 log-probabilities in the shape of its targets."""
    if choice.name == "cross_entropy":
        return torch.stack(
            [-w * p for w, p in zip(inputs["weights"].ravel(), logprobs.ravel(), strict=True)]
        ).sum()
    q_T, a_T = inputs["logprobs"].tolist(), inputs["advantages"].tolist()
    p_T = [float(p) for p in logprobs.detach()]
    marks = inputs.get("sequence_ratio_mask", torch.ones(len(p_T))).tolist()
    counted = [p - q for p, q, mark in zip(p_T, q_T, marks, strict=True) if mark]
    sequence_ratio = math.exp(sum(counted) / len(counted))
    terms = []
    for t, p in enumerate(logprobs):
        ratio = math.exp(p_T[t] - q_T[t])
        low = choice.settings.get("clip_low_threshold", 0.0)
        high = choice.settings.get("clip_high_threshold", math.inf)
        if choice.name == "importance_sampling":
            terms.append(torch.exp(p - q_T[t]) * a_T[t])
        elif choice.name == "ppo":
            terms.append(_clipped(ratio, p, a_T[t], low, high))
        elif choice.name == "gspo":
            terms.append(_clipped(sequence_ratio, p, a_T[t], low, high))
        elif choice.name == "cispo":
            terms.append(min(max(ratio, low), high) * a_T[t] * p)
        else:
            assert choice.name == "dro"
            terms.append(a_T[t] * p - choice.settings["beta"] / 2 * (p - q_T[t]) ** 2)
    return -torch.stack(terms).sum()


def _clipped(ratio: float, p: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(r A, clip(r) A) by cases; the ratio moves with p as p / sg[p]."""
    if advantage > 0 and ratio > high:
        return p * 0 + high * advantage
    if advantage < 0 and ratio < low:
        return p * 0 + low * advantage
    return ratio * torch.exp(p - p.detach()) * advantage
