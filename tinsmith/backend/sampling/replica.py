"""A module tree that computes with one snapshot's weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinsmith.backend.model.adapter import AdapterWeights
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.families import SignedRotation, fusable_layers
from tinsmith.backend.sampling.fused_layer import FusedLayer
from tinsmith.backend.sampling.keys_values import use_keys_values
from tinsmith.backend.sampling.packed import ACTIVATIONS, gated_layer, packed_linear


def make_replica(base: BaseModel, adapter: AdapterWeights | None) -> PreTrainedModel:
    """The base model with `adapter` applied (None: the base itself), for sampling.

    In float32 on the CPU the adapter is merged into weights of the replica's own, packed:
    W' = W + (alpha / r) B A differs from the trainer's arithmetic by rounding alone. In
    16 bits a small update would be rounded away, and a sharded W is nowhere whole for long, so
    there it is computed beside W.
    """
    module = base.module_tree()
    use_keys_values(module)
    pairs = {} if adapter is None else dict(adapter.pairs)
    scaling = 0.0 if adapter is None else adapter.settings.scaling
    if base.shards is None and should_merge(base.device, base.dtype):
        _merge_all(module, pairs, scaling)
    else:
        for name, layer in _linear_layers(module):
            if name in pairs:
                _replace(module, name, AdaptedLinear(layer, pairs.pop(name), scaling))
    assert not pairs, f"{sorted(pairs)} kept their base weights"
    return module


def should_merge(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether adapters are merged into weights of their own."""
    return device.type == "cpu" and dtype == torch.float32


class AdaptedLinear(nn.Module):
    """x W^T + b + scaling (x A^T) B^T, the adapter in float32 as the trainer computes it."""

    def __init__(self, linear: nn.Linear, pair: tuple[Tensor, Tensor], scaling: float) -> None:
        super().__init__()
        self.linear = linear
        self.weight = linear.weight
        self.a, self.b = (side.to(linear.weight.device) for side in pair)  # files load to the CPU
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x.to(self.a.dtype), self.a), self.b) * self.scaling
        return (self.linear(x) + update).to(x.dtype)


def _merge_all(
    module: PreTrainedModel, pairs: dict[str, tuple[Tensor, Tensor]], scaling: float
) -> None:
    """Put packed products of merged weights in the place of all linear layers; those that it finds
    leave `pairs`."""

    def merged(name: str) -> tuple[Tensor, Tensor | None]:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weight_OI = layer.weight.detach()
        if name in pairs:
            a, b = pairs.pop(name)
            weight_OI = torch.addmm(weight_OI, b, a, alpha=scaling)
        return weight_OI, None if layer.bias is None else layer.bias.detach()

    def gated(name: str, activation: type[nn.Module]) -> nn.Module:
        gate, up, down = (merged(f"{name}.{leaf}_proj") for leaf in ("gate", "up", "down"))
        return gated_layer(gate, up, down, activation)

    for name, activation in _gated_layers(module):
        _replace(module, name, gated(name, activation))
    fusable = fusable_layers(module)
    for name, layer in fusable.items():
        weights, biases = zip(*(merged(f"{name}.self_attn.{x}_proj") for x in "qkv"), strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        qkv = packed_linear(torch.cat(weights), bias)
        output = packed_linear(*merged(f"{name}.self_attn.o_proj"))
        _replace(module, name, FusedLayer(layer, qkv, output))
    if fusable:
        model: Any = backbone(module)
        model.rotary_emb = SignedRotation(model.rotary_emb)
    for name, _ in _linear_layers(module):
        _replace(module, name, packed_linear(*merged(name)))


def _gated_layers(module: PreTrainedModel) -> list[tuple[str, type[nn.Module]]]:
    """Layers down(activation(gate(x)) * up(x)) with an activation that oneDNN has, and which."""
    if not torch.backends.mkldnn.is_available():
        return []
    found = []
    for name, layer in module.named_modules():
        children = dict(layer.named_children())
        if children.keys() == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
            activation = type(children.pop("act_fn"))
            is_linear = all(isinstance(child, nn.Linear) for child in children.values())
            if activation in ACTIVATIONS and is_linear:
                found.append((name, activation))
    return found


def _linear_layers(module: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    return [(n, layer) for n, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
