"""The losses of the Tinker API, as sums over tokens (not means).

Each takes the trainer's log-probabilities of the target tokens and the datum's tensors, all of
shape [N] over the tokens of a batch, and returns a scalar to be minimised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss, the tensors a datum must bring beside `target_tokens`, and the one of them whose
    zeros take a token out of the gradient."""

    compute: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    inputs: tuple[str, ...]
    coefficient: str


def cross_entropy(logprobs_N: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """L = -sum_t w_t log p(x_t); weights of any sign are honoured (Tinker API, losses)."""
    return -(inputs["weights"] * logprobs_N).sum()


def importance_sampling(logprobs_N: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """L = -sum_t (p(x_t) / q(x_t)) A_t with q the sampler (Tinker API, losses)."""
    ratio_N = torch.exp(logprobs_N - inputs["logprobs"])
    return -(ratio_N * inputs["advantages"]).sum()


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, ("weights",), "weights"),
    "importance_sampling": Loss(importance_sampling, ("logprobs", "advantages"), "advantages"),
}
