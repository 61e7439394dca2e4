"""Products with frozen weights that are packed once: what the sampler computes on a CPU.

Each row of a product is summed in an order that its neighbours have no say in, bit for bit.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

# What oneDNN calls an activation, and its algorithm. Its own: PyTorch's SiLU and GELU round the
# last elements of a tensor otherwise than the first, so that the size of the batch shows.
ACTIVATIONS: dict[type[nn.Module], tuple[str, str]] = {
    SiLUActivation: ("swish", ""),
    GELUTanh: ("gelu", "tanh"),
}
# The number of rows that MKL is told when it packs.
PACKED_FOR = 64
# Outputs of the weights that MKL's products are tried on, so that a large vocabulary takes no time.
MAX_TRIED = 4096
MAX_ROWS_TRIED = 1024


class PackedLinear(nn.Module):
    """x W^T + b, packed by MKL where its products can be trusted, else by oneDNN where there is
    one; MKL's are faster, above all of few rows."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.bias = bias_O
        self._packing = _packing(*weight_OI.shape)
        # MKL's operator reads no more of the plain weights than their shape.
        self._like = weight_OI.new_empty(1, 1).expand(weight_OI.shape)
        match self._packing:
            case "mkl":
                self.weight = torch.ops.mkl._mkl_reorder_linear_weight(weight_OI, PACKED_FOR)
            case "onednn":
                self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
            case _:
                self.weight = weight_OI

    def forward(self, x: Tensor) -> Tensor:
        match self._packing:
            case "mkl":
                num_rows = x.numel() // x.shape[-1]
                return torch.ops.mkl._mkl_linear(x, self.weight, self._like, self.bias, num_rows)
            case "onednn":
                return _onednn(x, self.weight, self.bias, "none", "")
            case _:
                return F.linear(x, self.weight, self.bias)


class ActivatedLinear(nn.Module):
    """activation(x W^T + b) in one pass of oneDNN."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, activation: tuple[str, str]
    ) -> None:
        super().__init__()
        self.bias = bias_O
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return _onednn(x, self.weight, self.bias, *self._activation)


class GatedLayer(nn.Module):
    """down(activation(gate(x)) * up(x)) of packed weights."""

    def __init__(self, gate: ActivatedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x).mul_(self.gate_proj(x)))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, name: str, algorithm: str) -> Tensor:
    """A product of two rows or more: a single one would be split otherwise (seen from 1,536 inputs
    on), so it is computed twice over."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 1:
        rows = rows.repeat(2, 1)
    y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, name, [], algorithm)
    return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], y.shape[-1])


@cache
def _packing(num_outputs: int, num_inputs: int) -> str:
    """Who packs weights of a shape. MKL promises that what it packed for some number of rows serves
    that number alone; in fact it serves every number, and a row of small weights alone is summed
    otherwise. So what is relied on is tried first."""
    if not torch.backends.mkldnn.is_available():
        return "none"
    if not torch.backends.mkl.is_available():
        return "onednn"
    num_outputs = min(num_outputs, MAX_TRIED)
    weight = torch.linspace(-1, 1, num_outputs * num_inputs).view(num_outputs, num_inputs).sin_()
    x = torch.linspace(-3, 3, MAX_ROWS_TRIED * num_inputs).view(-1, num_inputs).cos_()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, PACKED_FOR)
    y = torch.ops.mkl._mkl_linear(x, packed, weight, None, len(x))
    is_right = torch.allclose(y, F.linear(x, weight), rtol=0, atol=1e-5 * num_inputs)
    for bias in (None, weight[:, 0].contiguous()):
        y = torch.ops.mkl._mkl_linear(x, packed, weight, bias, len(x))
        for start in (0, 1):  # where in memory the rows stand
            for rows in (*range(1, 18), PACKED_FOR - 1, PACKED_FOR, PACKED_FOR + 1):
                part = x[start : start + rows]
                z = torch.ops.mkl._mkl_linear(part, packed, weight, bias, rows)
                is_right = is_right and torch.equal(z, y[start : start + rows])
    return "mkl" if is_right else "onednn"
