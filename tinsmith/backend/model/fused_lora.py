"""PEFT's LoRA layer with its arithmetic in four matrix products and no element-wise pass."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinsmith.backend.model.products import linear

ADAPTER = "default"


class FusedLoraLinear(Linear):
    """y = x W^T + b + s (x A^T) B^T; the scaling and both sums happen inside matrix products.

    PEFT's own forward writes the output three times more, which on a CPU costs as much as a third
    of the products. Where dtypes differ (16-bit base, float32 adapter) PEFT's is used.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        base = self.get_base_layer()
        if args or kwargs or not base.weight.dtype == x.dtype == a.dtype:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        y = _Fused.apply(rows, base.weight, base.bias, a, b, self.scaling[ADAPTER])
        return y.view(*x.shape[:-1], y.shape[-1])  # pyright: ignore[reportOptionalMemberAccess]


class _Fused(torch.autograd.Function):
    """Gradients of x, A and B; W and b are frozen.

    With z = x A^T and g = s (dy B): dx = dy W + g A, dA = g^T x, dB = s dy^T z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        z = linear(x, a)
        y = linear(x, weight, bias)
        y.addmm_(z, b.t(), alpha=scaling)
        ctx.save_for_backward(x, z, weight, a, b)
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, z, weight, a, b = ctx.saved_tensors
        g = (dy @ b).mul_(ctx.scaling)
        dx = linear(dy, weight.t()).addmm_(g, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, g.t() @ x, (dy.t() @ z).mul_(ctx.scaling), None
