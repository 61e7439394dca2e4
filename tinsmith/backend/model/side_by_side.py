"""Adapted linear layers with one input, computed side by side in products of all their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tinsmith.backend.model.narrow_products import correlate, project, width_for
from tinsmith.backend.model.products import linear, packed, suits_onednn

ADAPTER = "default"  # PEFT's name of the one that a module tree has


@dataclass(frozen=True, slots=True)
class _BothWays:
    """What y and x's gradient are products with: W [O, I], and W^T [I, O], in the parts that y's
    gradient comes in."""

    forward: Tensor
    backward: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class _Merged:
    """W + s B A, and what its adapters' gradients are products with: all A as one [I, R] and each
    s B [O, R]."""

    weight: _BothWays
    all_a: Tensor
    scaled_b: Sequence[Tensor]


class SideBySide:
    """y = x W^T + b + s (x A^T) B^T, for frozen W and b of several layers and, if they have any,
    their adapters A and B: either all of the layers have one or none.

    x is read once for all W and once for all A, and x's gradient is one sum inside the products.
    From `merge` to `unmerge` W + s B A is one matrix, so that both passes have a product less.
    Gradients are by hand, for use in an autograd.Function: `forward` and `backward` keep nothing.
    """

    def __init__(self, layers: Sequence[Any], has_one_gradient: bool = True) -> None:
        """`backward` is given y's gradient in one piece, or each layer's by itself."""
        plain: list[Any] = [
            layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for layer in layers
        ]
        self.weight = _stacked([layer.weight for layer in plain])
        self.bias = None
        if any(layer.bias is not None for layer in plain):
            self.bias = torch.cat([_bias(layer) for layer in plain]).detach()
        self._num_outputs = [layer.out_features for layer in plain]
        adapted: list[Any] = [layer for layer in layers if isinstance(layer, LoraLayer)]
        self.adapters: list[Tensor] = [
            weight
            for layer in adapted
            for weight in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        ]
        self._scaling: float = adapted[0].scaling[ADAPTER] if adapted else 0.0
        self._gradient_sizes = [len(self.weight)] if has_one_gradient else self._num_outputs
        self._own = _BothWays(self.weight, self._across(self.weight))
        self._merged: _Merged | None = None

    @torch.no_grad()
    def merge(self, has_backward: bool) -> None:
        """Compute by the adapters as they are now, until `unmerge`."""
        if not self.adapters:
            return
        together = torch.empty_like(self.weight)
        parts = (tensor.split(self._num_outputs) for tensor in (self.weight, together))
        adapters = self.adapters[::2], self.adapters[1::2]
        for weight, merged, a, b in zip(*parts, *adapters, strict=True):
            torch.addmm(weight, b, a, alpha=self._scaling, out=merged)
        across = self._across(together) if has_backward else []
        weight = _BothWays(packed(together), [packed(weight) for weight in across])
        sides = self._all_a(self.adapters), self._scaled_b(self.adapters)
        self._merged = _Merged(weight, *sides)

    def merged_bytes(self, has_backward: bool) -> int:
        """What `merge` keeps until `unmerge`: weights that are packed once for each way, and the
        adapters."""
        if not self.adapters:
            return 0
        num_copies = 2 if has_backward and suits_onednn(self.weight) else 1
        num_sides = len(self._num_outputs) * self.weight.shape[1] + len(self.weight)
        side_bytes = self._width(self.adapters) * self.adapters[0].itemsize
        return num_copies * self.weight.nbytes + num_sides * side_bytes

    def unmerge(self) -> None:
        self._merged = None

    def forward(
        self, x: Tensor, adapters: Sequence[Tensor], has_backward: bool
    ) -> tuple[Tensor, Tensor | None]:
        """y [N, O] of x [N, I] and the adapters A, B, A, B, ..., and what `backward` wants of it:
        z = x A^T [N, R], each adapter's as wide as `width_for` has it."""
        y = linear(x, self._present.forward, self.bias)
        is_merged = self._merged is not None
        if not adapters or (is_merged and not has_backward):
            return y, None
        all_a = self._merged.all_a if self._merged else self._all_a(adapters)
        z = x.new_empty(len(x), all_a.shape[1])
        project(x, all_a, z)
        if not is_merged:
            parts = y.split(self._num_outputs, 1), self._by_adapter(z), adapters[1::2]
            for own_y, own_z, b in zip(*parts, strict=True):
                own_y.addmm_(own_z[:, : b.shape[1]], b.t(), alpha=self._scaling)
        return y, z

    def backward(
        self,
        dys: Sequence[Tensor],
        x: Tensor,
        z: Tensor | None,
        adapters: Sequence[Tensor],
        needs_dx: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of x, if it needs one, and of the adapters, by that of y.

        With g = s dy B: dx = dy W + g A, dA = g^T x, dB = s dy^T z.
        """
        dx = self._input_gradient(dys) if needs_dx else None
        if z is None:
            return dx, []
        scaled_b = self._merged.scaled_b if self._merged else self._scaled_b(adapters)
        g, db = torch.empty_like(z), []
        own_dys = dys if len(dys) > 1 else dys[0].split(self._num_outputs, 1)
        parts = self._by_adapter(z), self._by_adapter(g), scaled_b, adapters[1::2]
        for dy, own_z, own_g, own_b, b in zip(own_dys, *parts, strict=True):
            project(dy, own_b, own_g)
            db.append(correlate(dy, own_z)[:, : b.shape[1]].mul(self._scaling))
        if dx is not None and self._merged is None:
            dx.addmm_(g, self._all_a(adapters).t())
        by_adapter = zip(self._by_adapter(correlate(x, g)), adapters[::2], strict=True)
        da = [own[:, : len(a)].t() for own, a in by_adapter]
        return dx, [gradient for pair in zip(da, db, strict=True) for gradient in pair]

    def _input_gradient(self, dys: Sequence[Tensor]) -> Tensor:
        first, *others = zip(dys, self._present.backward, strict=True)
        dx = linear(*first)
        for dy, weight in others:
            dx += linear(dy, weight)
        return dx

    @property
    def _present(self) -> _BothWays:
        return self._merged.weight if self._merged else self._own

    def _across(self, weight: Tensor) -> list[Tensor]:
        return [part.t() for part in weight.split(self._gradient_sizes)]

    def _all_a(self, adapters: Sequence[Tensor]) -> Tensor:
        width = self._width(adapters)
        return torch.cat([_widened(a.t(), width) for a in adapters[::2]], 1)

    def _scaled_b(self, adapters: Sequence[Tensor]) -> list[Tensor]:
        width = self._width(adapters)
        return [_widened(b * self._scaling, width) for b in adapters[1::2]]

    def _width(self, adapters: Sequence[Tensor]) -> int:
        """Of what each adapter has of z."""
        first = adapters[0]
        return width_for(len(first), first.device.type, first.dtype)

    def _by_adapter(self, tensor: Tensor) -> Sequence[Tensor]:
        """What each adapter has of a tensor [..., R]."""
        return tensor.chunk(len(self._num_outputs), 1)


def _widened(matrix: Tensor, width: int) -> Tensor:
    """With zeros behind its columns."""
    missing = width - matrix.shape[1]
    assert missing >= 0  # adapters with one input have one rank
    return F.pad(matrix, (0, missing)) if missing else matrix


def _stacked(weights: Sequence[nn.Parameter]) -> Tensor:
    """Weights [O, I] as one of all their outputs. They become parts of it, so that it takes memory
    once, whatever many adapters ask for it."""
    if len(weights) == 1:
        return weights[0].detach()
    first, num_outputs = weights[0], sum(weight.shape[0] for weight in weights)
    if not _lie_side_by_side(weights):
        # Not tensors of inference, where they are made there first: they are trained on later.
        with torch.inference_mode(False), torch.no_grad():
            together = torch.cat(list(weights))
            parts = together.split([weight.shape[0] for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.data = part
    return first.detach().as_strided((num_outputs, first.shape[1]), (first.shape[1], 1))


def _lie_side_by_side(weights: Sequence[nn.Parameter]) -> bool:
    storage, end = weights[0].untyped_storage().data_ptr(), weights[0].storage_offset()
    for weight in weights:
        is_next = weight.is_contiguous() and weight.storage_offset() == end
        if not is_next or weight.untyped_storage().data_ptr() != storage:
            return False
        end += weight.numel()
    return True


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
