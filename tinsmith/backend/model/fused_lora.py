"""PEFT's LoRA layer with its arithmetic in matrix products and no element-wise pass."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinsmith.backend.model.side_by_side import ADAPTER, SideBySide


class FusedLoraLinear(Linear):
    """y = x W^T + b + s (x A^T) B^T; the scaling and both sums happen inside matrix products.

    PEFT's own forward writes the output three times more, which on a CPU costs as much as a third
    of the products. Where dtypes differ (16-bit base, float32 adapter) PEFT's is used.
    """

    _merged_product: SideBySide | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        base = self.get_base_layer()
        if args or kwargs or not base.weight.dtype == x.dtype == a.dtype:
            return super().forward(x, *args, **kwargs)
        product = self._merged_product or SideBySide([self])
        y = _Adapted.apply(product, x.reshape(-1, x.shape[-1]), torch.is_grad_enabled(), a, b)
        return y.view(*x.shape[:-1], y.shape[-1])  # pyright: ignore[reportOptionalMemberAccess]

    def products(self) -> list[SideBySide]:
        return [SideBySide([self])]

    def merge_adapters(self, has_backward: bool) -> None:
        """Compute by W + s B A, as they are now, until `unmerge_adapters`."""
        [self._merged_product] = self.products()
        self._merged_product.merge(has_backward)

    def unmerge_adapters(self) -> None:
        self._merged_product = None


class _Adapted(torch.autograd.Function):
    """Gradients of x, A and B; W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any, product: SideBySide, x: Tensor, has_backward: bool, a: Tensor, b: Tensor
    ) -> Tensor:
        y, z = product.forward(x, (a, b), has_backward)
        ctx.save_for_backward(x, z, a, b)
        ctx.product = product
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, z, a, b = ctx.saved_tensors
        dx, (da, db) = ctx.product.backward([dy], x, z, (a, b), ctx.needs_input_grad[1])
        return None, dx, None, da, db
