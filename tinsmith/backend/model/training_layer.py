"""A decoder layer with a backward pass by hand, for training on a CPU in float32 or more.

Between its products a layer's time is that of memory, so what counts is how often a tensor of the
tokens is written: here once for each result that the mathematics names, forwards and backwards.
What norms give is not kept but made again, in one pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.families import (
    SignedRotation,
    fusable_layers,
    head_norm,
    sliding_window,
    trains_by_hand,
)
from tinsmith.backend.model.packed_attention import Part, attend_parts
from tinsmith.backend.model.passes import passes_for
from tinsmith.backend.model.side_by_side import SideBySide


class TrainingLayer(GradientCheckpointingLayer):
    """Computes what the layer it replaces does.

    The layer's modules keep their names and their parameters; their own forward is not called.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.qkv = SideBySide([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = SideBySide([attention.o_proj])
        self.gate_up = SideBySide([mlp.gate_proj, mlp.up_proj], has_one_gradient=False)
        self.down = SideBySide([mlp.down_proj])
        self.head_norm = head_norm(attention)
        config = attention.config
        self.num_heads = (config.num_attention_heads, config.num_key_value_heads)
        self._window = sliding_window(attention)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        parts: Sequence[Part] | None = None,
        **_: Any,
    ) -> Tensor:
        """[1, N, D] of packed tokens, or without `parts` [B, T, D] of rows that have any padding on
        their right, to the same shape."""
        shape = hidden_states.shape
        x = hidden_states.flatten(0, 1)
        cos, signed_sin = (
            angles.expand(shape[0], -1, -1, -1).flatten(0, 1) for angles in position_embeddings
        )
        parts = _rows(shape) if parts is None else parts
        has_backward = torch.is_grad_enabled()
        # The input comes out of it again, so that its two gradients are summed where one is made.
        x, query, key, value = _Heads.apply(  # pyright: ignore[reportGeneralTypeIssues]
            self, has_backward, x, cos, signed_sin, *self.qkv.adapters
        )
        attended = attend_parts(query, key, value, parts, self.self_attn.scaling, self._window)
        adapters = [a for product in self.products()[1:] for a in product.adapters]
        x = _Rest.apply(self, has_backward, x, attended.flatten(1), *adapters)
        return x.view(shape)  # pyright: ignore[reportOptionalMemberAccess]

    def products(self) -> list[SideBySide]:
        return [self.qkv, self.output, self.gate_up, self.down]

    def merge_adapters(self, has_backward: bool) -> None:
        """Compute by W + s B A, as they are now, until `unmerge_adapters`."""
        for product in self.products():
            product.merge(has_backward)

    def unmerge_adapters(self) -> None:
        for product in self.products():
            product.unmerge()

    def adapters_of_rest(self, adapters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Those of output, gate and up, and down."""
        found, start = [], 0
        for product in self.products()[1:]:
            found.append(adapters[start : start + len(product.adapters)])
            start += len(product.adapters)
        return found


def _rows(shape: torch.Size) -> list[Part]:
    num_rows, length, _ = shape
    none = slice(0, 0)
    return [Part(slice(i * length, (i + 1) * length), none) for i in range(num_rows)]


class _Heads(torch.autograd.Function):
    """The layer's input [N, D] as it is, and rotated queries [N, heads, K] and keys, and values
    [N, key heads, K] of it."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: TrainingLayer,
        has_backward: bool,
        x: Tensor,
        cos: Tensor,
        signed_sin: Tensor,
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        norm: Any = layer.input_layernorm
        by = passes_for(x)
        h, _ = by.normalize(x, norm.weight, norm.variance_epsilon)
        y, z = layer.qkv.forward(h, adapters, has_backward)
        heads = y.unflatten(1, (-1, cos.shape[-1]))
        num_rotated = sum(layer.num_heads)
        rotated, heads_r = by.rotate_heads(heads, (cos, signed_sin), layer.head_norm, num_rotated)
        ctx.save_for_backward(x, heads, z, heads_r, cos, signed_sin, *adapters)
        ctx.layer = layer
        return x.view_as(x), *rotated.split(layer.num_heads, 1), heads[:, num_rotated:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx, *d_heads = gradients
        x, heads, z, heads_r, cos, signed_sin, *adapters = ctx.saved_tensors
        layer = ctx.layer
        norm: Any = layer.input_layernorm
        by = passes_for(x)
        h, r = by.normalize(x, norm.weight, norm.variance_epsilon)
        rotation = cos, signed_sin
        dy = by.heads_gradient(d_heads, heads, rotation, layer.head_norm, heads_r)
        dh, own = layer.qkv.backward([dy.flatten(1)], h, z, adapters, ctx.needs_input_grad[2])
        dx = None if dh is None else by.norm_gradient(dh, x, norm.weight, r, dx)
        return None, None, dx, None, None, *own


class _Rest(torch.autograd.Function):
    """The layer's output [N, D] from its input [N, D] and what its heads attended to [N, H K]."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: TrainingLayer,
        has_backward: bool,
        x: Tensor,
        attended: Tensor,
        *adapters: Tensor,
    ) -> Tensor:
        of_output, of_gate_up, of_down = layer.adapters_of_rest(adapters)
        x2, z_output = layer.output.forward(attended, of_output, has_backward)
        x2 += x
        norm: Any = layer.post_attention_layernorm
        by = passes_for(x)
        h, _ = by.normalize(x2, norm.weight, norm.variance_epsilon)
        y, z = layer.gate_up.forward(h, of_gate_up, has_backward)
        inner = by.gate(y)
        x3, z_down = layer.down.forward(inner, of_down, has_backward)
        x3 += x2
        ctx.save_for_backward(attended, z_output, x2, y, z, inner, z_down, *adapters)
        ctx.layer = layer
        return x3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dx3,) = gradients
        attended, z_output, x2, y, z, inner, z_down, *adapters = ctx.saved_tensors
        layer = ctx.layer
        norm: Any = layer.post_attention_layernorm
        of_output, of_gate_up, of_down = layer.adapters_of_rest(adapters)
        d_inner, down = layer.down.backward([dx3], inner, z_down, of_down, True)
        by = passes_for(y)
        dys = by.gate_gradient(d_inner, y)
        h, r = by.normalize(x2, norm.weight, norm.variance_epsilon)
        dh, gate_up = layer.gate_up.backward(dys, h, z, of_gate_up, True)
        dx2 = by.norm_gradient(dh, x2, norm.weight, r, dx3)
        d_attended, output = layer.output.backward([dx2], attended, z_output, of_output, True)
        return None, None, dx2, d_attended, *output, *gate_up, *down


def use_training_layers(base: BaseModel, module: PreTrainedModel) -> None:
    """Put a TrainingLayer in the place of each layer of a known family, where that pays; the module
    tree takes no masks any more."""
    if not trains_by_hand(base):
        return
    layers = fusable_layers(module)
    if not all(isinstance(layer.mlp.act_fn, SiLUActivation) for layer in layers.values()):
        return
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, TrainingLayer(layer))
    if layers:
        model: Any = backbone(module)
        model.rotary_emb = SignedRotation(model.rotary_emb)
