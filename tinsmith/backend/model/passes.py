"""What a training layer does between its products, with gradients by hand: by PyTorch's operations,
for any dtype, and compiled (tinsmith/backend/compiled/passes.py, where the arguments are told)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith.backend.compiled import passes as compiled
from tinsmith.backend.compiled.threads import runs_compiled
from tinsmith.backend.model import fused_norm


def passes_for(x: Tensor) -> Any:
    """Compiled passes where they run, else these here."""
    return compiled if runs_compiled(x) else Plain


class Plain:
    """By PyTorch's operations."""

    normalize = staticmethod(fused_norm.normalize)

    @staticmethod
    def norm_gradient(
        dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, beside: Tensor | None = None
    ) -> Tensor:
        dx = fused_norm.norm_gradient(dy, x, weight, r)
        return dx if beside is None else dx.add_(beside)

    @staticmethod
    def rotate_heads(
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        norm: tuple[Tensor, float] | None,
        num_rotated: int,
    ) -> tuple[Tensor, Tensor | None]:
        (cos, signed_sin), rotated, r = rotation, heads[:, :num_rotated], None
        if norm is not None:
            rotated, r = fused_norm.normalize(rotated, *norm)
        turned = rotated.roll(cos.shape[-1] // 2, -1).mul_(signed_sin)
        return turned.addcmul_(rotated, cos), r

    @staticmethod
    def heads_gradient(
        gradients: Sequence[Tensor],
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        norm: tuple[Tensor, float] | None,
        r: Tensor | None,
    ) -> Tensor:
        (cos, signed_sin), (*d_rotated, d_values) = rotation, gradients
        d_rotated = torch.cat(d_rotated, 1)
        back = (d_rotated * signed_sin).roll(cos.shape[-1] // 2, -1).addcmul_(d_rotated, cos)
        if norm is not None:
            assert r is not None
            back = fused_norm.norm_gradient(back, heads[:, : back.shape[1]], norm[0], r)
        return torch.cat([back, d_values], 1)

    @staticmethod
    def gate(y: Tensor) -> Tensor:
        gate, up = y.chunk(2, 1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def gate_gradient(d_inner: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """With silu's gradient as PyTorch has it."""
        gate, up = y.chunk(2, 1)
        return torch.ops.aten.silu_backward(d_inner * up, gate), F.silu(gate).mul_(d_inner)
