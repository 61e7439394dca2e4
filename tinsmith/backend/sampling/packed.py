"""Products with frozen weights that are packed for oneDNN: what the sampler computes on a CPU.

Each row of a product is summed in an order that its neighbours have no say in, bit for bit. That
holds for two rows or more; a single one would be split otherwise (seen from 1,536 inputs on), so it
is computed twice over.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, SiLUActivation

# What oneDNN calls an activation, and its algorithm. Its own: PyTorch's SiLU and GELU round the
# last elements of a tensor otherwise than the first, so that the size of the batch shows.
ACTIVATIONS: dict[type[nn.Module], tuple[str, str]] = {
    SiLUActivation: ("swish", ""),
    GELUTanh: ("gelu", "tanh"),
}


class MergedLinear(nn.Module):
    """x W'^T + b with W' = W + scaling B A, packed where oneDNN can."""

    def __init__(
        self, linear: nn.Linear, pair: tuple[Tensor, Tensor] | None, scaling: float
    ) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if pair is not None:
            a, b = pair
            weight = torch.addmm(weight, b, a, alpha=scaling)
        self.out_features = weight.shape[0]
        self.is_packed = torch.backends.mkldnn.is_available()
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.is_packed else weight
        )
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        rows = _at_least_two(x.reshape(-1, x.shape[-1]))
        y = self.rows(rows)
        return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], self.out_features)

    def rows(self, x_ND: Tensor, activation: str = "none", algorithm: str = "") -> Tensor:
        """The product of two rows or more, and an activation of it in the same pass."""
        return torch.ops.mkldnn._linear_pointwise(
            x_ND, self.weight, self.bias, activation, [], algorithm
        )

    def rows_times(self, x_ND: Tensor, other_NO: Tensor) -> Tensor:
        """The product of two rows or more, multiplied by `other_NO` in the same pass."""
        return torch.ops.mkldnn._linear_pointwise.binary(
            x_ND, other_NO, self.weight, self.bias, "mul"
        )


class GatedLayer(nn.Module):
    """down(activation(gate(x)) * up(x)) of packed weights, with no pass of its own over what lies
    between the products."""

    def __init__(
        self, gate: MergedLinear, up: MergedLinear, down: MergedLinear, activation: tuple[str, str]
    ) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        rows = _at_least_two(x.reshape(-1, x.shape[-1]))
        gate = self.gate_proj.rows(rows, *self._activation)
        y = self.down_proj.rows(self.up_proj.rows_times(rows, gate))
        return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], y.shape[-1])


def fuse_gated_layers(module: PreTrainedModel) -> None:
    """Put a GatedLayer in the place of each gated layer whose activation oneDNN has."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            fused = _fused(layer)
            if fused is not None:
                setattr(parent, name, fused)


def _fused(layer: nn.Module) -> GatedLayer | None:
    children = dict(layer.named_children())
    if children.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    activation = ACTIVATIONS.get(type(children.pop("act_fn")))
    products = [layer for layer in children.values() if isinstance(layer, MergedLinear)]
    if activation is None or len(products) < 3 or not all(p.is_packed for p in products):
        return None
    by_name = {name: layer for name, layer in children.items() if isinstance(layer, MergedLinear)}
    return GatedLayer(by_name["gate_proj"], by_name["up_proj"], by_name["down_proj"], activation)


def _at_least_two(x_ND: Tensor) -> Tensor:
    return x_ND.repeat(2, 1) if x_ND.shape[0] == 1 else x_ND
