"""Products with frozen weights that are packed once: what the sampler computes on a CPU.

Each row of a product is summed in an order that its neighbours have no say in, bit for bit.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from tinsmith.backend.compiled import panels
from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.compiled.tiles import LANES

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


def packed_linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Module:
    """x W^T + b, packed by MKL where its products can be trusted, else in panels where those are
    fast, else by oneDNN where there is one."""
    match _packing(*weight_OI.shape):
        case "mkl":
            return _MklLinear(weight_OI, bias_O)
        case "panels":
            return _PanelLinear(weight_OI, bias_O)
        case "onednn":
            return _OnednnLinear(weight_OI, bias_O)
        case _:
            return _PlainLinear(weight_OI, bias_O)


def gated_layer(
    gate: tuple[Tensor, Tensor | None],
    up: tuple[Tensor, Tensor | None],
    down: tuple[Tensor, Tensor | None],
    activation: type[nn.Module],
) -> nn.Module:
    """down(activation(gate(x)) * up(x)) of weights and biases, for one of ACTIVATIONS."""
    has_bias = gate[1] is not None or up[1] is not None
    is_panels = _packing(*gate[0].shape) == "panels"
    if is_panels and activation is SiLUActivation and not has_bias:
        return _PanelGatedLayer(gate[0], up[0], packed_linear(*down))
    activated = _OnednnLinear(*gate, ACTIVATIONS[activation])
    return _GatedLayer(activated, packed_linear(*up), packed_linear(*down))


class _Linear(nn.Module):
    """x W^T + b of a weight in an order of its own."""

    def __init__(self, weight: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias_O


class _PlainLinear(_Linear):
    """By weights as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _MklLinear(_Linear):
    """By weights in MKL's order."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(_mkl_pack(weight_OI), bias_O)
        # MKL's operator reads no more of the plain weights than their shape.
        self._like = weight_OI.new_empty(1, 1).expand(weight_OI.shape)

    def forward(self, x: Tensor) -> Tensor:
        return _mkl_linear(x, self.weight, self._like, self.bias)


class _OnednnLinear(_Linear):
    """By weights in oneDNN's order; activation(x W^T + b) in one pass, if one is named."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, activation: tuple[str, str] = ("none", "")
    ) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight_OI, None), bias_O)
        self._activation, self._algorithm = activation

    def forward(self, x: Tensor) -> Tensor:
        """A product of two rows or more: a single one would be split otherwise (seen from 1,536
        inputs on), so it is computed twice over."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] == 1:
            rows = rows.repeat(2, 1)
        y = torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, self._activation, [], self._algorithm
        )
        return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], y.shape[-1])


class _PanelLinear(_Linear):
    """By weights in panels."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(panels.pack(weight_OI), bias_O)

    def forward(self, x: Tensor) -> Tensor:
        y = panels.multiply(x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


class _GatedLayer(nn.Module):
    """Of three products, each by itself; the gate's has the activation in it."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x).mul_(self.gate_proj(x)))


class _PanelGatedLayer(nn.Module):
    """Of panels, whose products are gated before they leave a core's cache."""

    def __init__(self, gate_OI: Tensor, up_OI: Tensor, down: nn.Module) -> None:
        super().__init__()
        self.gate, self.up = panels.pack(gate_OI), panels.pack(up_OI)
        self.down_proj = down

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(panels.gate(x, self.gate, self.up))


def _mkl_pack(weight_OI: Tensor) -> Tensor:
    return torch.ops.mkl._mkl_reorder_linear_weight(weight_OI, PACKED_FOR)


def _mkl_linear(x: Tensor, packed: Tensor, like_OI: Tensor, bias: Tensor | None) -> Tensor:
    num_rows = x.numel() // x.shape[-1]
    return torch.ops.mkl._mkl_linear(x, packed, like_OI, bias, num_rows)


@cache
def _packing(num_outputs: int, num_inputs: int) -> str:
    """Who packs weights of a shape.

    With registers of 16 numbers products with panels take a tenth less time than oneDNN's of 64 to
    128 rows, half as much of 8 or fewer, and as much of thousands; with shorter ones they were not
    measured.
    """
    is_onednn = torch.backends.mkldnn.is_available()
    if is_onednn and torch.backends.mkl.is_available() and _is_mkl_right(num_outputs, num_inputs):
        return "mkl"
    if LANES == 16 and openmp() is not None and panels.can_pack(num_outputs, num_inputs):
        return "panels"
    return "onednn" if is_onednn else "none"


def _is_mkl_right(num_outputs: int, num_inputs: int) -> bool:
    """MKL promises that what it packed for some number of rows serves that number alone; in fact it
    serves every number, and a row of small weights alone is summed otherwise. So what is relied on
    is tried first."""
    num_outputs = min(num_outputs, MAX_TRIED)
    weight = torch.linspace(-1, 1, num_outputs * num_inputs).view(num_outputs, num_inputs).sin_()
    x = torch.linspace(-3, 3, MAX_ROWS_TRIED * num_inputs).view(-1, num_inputs).cos_()
    packed = _mkl_pack(weight)
    y = _mkl_linear(x, packed, weight, None)
    is_right = torch.allclose(y, F.linear(x, weight), rtol=0, atol=1e-5 * num_inputs)
    for bias in (None, weight[:, 0].contiguous()):
        y = _mkl_linear(x, packed, weight, bias)
        for start in (0, 1):  # where in memory the rows stand
            for rows in (*range(1, 18), PACKED_FOR - 1, PACKED_FOR, PACKED_FOR + 1):
                z = _mkl_linear(x[start : start + rows], packed, weight, bias)
                is_right = is_right and torch.equal(z, y[start : start + rows])
    return is_right
