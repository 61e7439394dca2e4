"""Root-mean-square norms with a backward pass by hand, for training on a CPU in float32 or more."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.families import trains_by_hand

# Families of transformers whose norm is y = w x / sqrt(mean(x^2) + epsilon).
NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})


class FusedNorm(nn.Module):
    """y = w x r with r = 1 / sqrt(mean(x^2) + epsilon) over the last dimension; w is frozen.

    Autograd over the plain formula writes some ten tensors of the size of x, this writes three,
    which on a CPU is what a norm costs.
    """

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return _Normalize.apply(x, self.weight, self.variance_epsilon)  # pyright: ignore[reportReturnType]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, r = normalize(x, weight, epsilon)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, weight, r = ctx.saved_tensors
        return norm_gradient(dy, x, weight, r), None, None


def normalize(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """w x r, in float32 bit for bit what transformers computes, and r."""
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x * r).mul_(weight), r


def norm_gradient(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """With g = w dy and D inputs: dx = r g - x r^3 (g . x) / D."""
    g = dy * weight
    along = torch.einsum("...d,...d->...", g, x).unsqueeze(-1).mul_(r.pow(3)).div_(-x.shape[-1])
    return g.mul_(r).addcmul_(x, along)


def fuse_norms(base: BaseModel, module: PreTrainedModel) -> None:
    """Put a FusedNorm in the place of each norm of a known family, where that is exact and pays."""
    if not trains_by_hand(base):
        return
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__ in NORMS:
                known: Any = layer
                setattr(parent, name, FusedNorm(known.weight, known.variance_epsilon))
