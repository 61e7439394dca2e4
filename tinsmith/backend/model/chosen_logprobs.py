"""Log-probabilities of chosen tokens, with gradients by hand."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinsmith.backend.compiled import logprobs as compiled
from tinsmith.backend.compiled.threads import runs_compiled


def chosen_logprobs(logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
    """log softmax(logits)[target], [N, K]; d/dlogits of target k = onehot(k) - softmax(logits)."""
    function = _Chosen
    if runs_compiled(logits_NV):
        function = _ChosenCompiled
        # Which writes where it is told. What clients send is held before (datums.py).
        assert not targets_NK.numel() or int(targets_NK.min()) >= 0
        assert not targets_NK.numel() or int(targets_NK.max()) < logits_NV.shape[1]
    logprobs_NK = function.apply(logits_NV.contiguous(), targets_NK.contiguous())
    assert isinstance(logprobs_NK, Tensor)
    return logprobs_NK


class _ChosenCompiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
        logprobs_NK, normalizers_N = compiled.chosen_logprobs(logits_NV, targets_NK)
        ctx.save_for_backward(logits_NV, targets_NK, normalizers_N)
        return logprobs_NK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return compiled.logits_gradient(*gradients, *ctx.saved_tensors), None


class _Chosen(torch.autograd.Function):
    """Autograd's own backward passes over the logits twice as often."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
        logprobs_NV = torch.log_softmax(logits_NV, dim=1)
        ctx.save_for_backward(logprobs_NV, targets_NK)
        return logprobs_NV.gather(1, targets_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_NK,) = gradients
        logprobs_NV, targets_NK = ctx.saved_tensors
        result_NV = logprobs_NV.exp().mul_(-gradient_NK.sum(1, keepdim=True))
        result_NV.scatter_add_(1, targets_NK, gradient_NK)
        return result_NV, None
