"""A module tree that computes with one snapshot's weights."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinsmith.backend.model.adapter import AdapterWeights
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.keys_values import use_keys_values
from tinsmith.backend.sampling.packed import MergedLinear, fuse_gated_layers


def make_replica(base: BaseModel, adapter: AdapterWeights | None) -> PreTrainedModel:
    """The base model with `adapter` applied (None: the base itself), for sampling.

    In float32 on the CPU the adapter is merged into weights of the replica's own, packed for
    oneDNN: W' = W + (alpha / r) B A differs from the trainer's arithmetic by rounding alone. In
    16 bits a small update would be rounded away, and a sharded W is nowhere whole for long, so
    there it is computed beside W.
    """
    module = base.module_tree()
    use_keys_values(module)
    pairs = {} if adapter is None else adapter.pairs
    scaling = 0.0 if adapter is None else adapter.settings.scaling
    merges = base.shards is None and should_merge(base.device, base.dtype)
    for name, layer in _linear_layers(module):
        pair = pairs.get(name)
        if merges:
            _replace(module, name, MergedLinear(layer, pair, scaling))
        elif pair is not None:
            _replace(module, name, AdaptedLinear(layer, pair, scaling))
    _assert_all_applied(module, pairs)
    if merges:
        fuse_gated_layers(module)
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


def _linear_layers(module: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    return [(n, layer) for n, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


def _assert_all_applied(module: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name in pairs:
        layer = module.get_submodule(name)
        assert isinstance(layer, MergedLinear | AdaptedLinear), f"{name} kept its base weights"
