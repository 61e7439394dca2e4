"""A decoder layer in few operations, for the families whose layers are of one plan.

Few operations matter where a step has few rows: then what PyTorch and Python do around each costs
more than the arithmetic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import backbone, decoder_layers
from tinsmith.backend.sampling.keys_values import PromptKeysValues, RunningKeysValues
from tinsmith.backend.sampling.packed import PackedLinear

# x + attention(norm(x)), then x + mlp(norm(x)), with rotated queries and keys of whole heads.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class FusedLayer(nn.Module):
    """Computes what the layer it replaces does, queries, keys and values by one product."""

    def __init__(self, layer: Any, qkv: PackedLinear, output: PackedLinear) -> None:
        super().__init__()
        attention = layer.self_attn
        config = attention.config
        self.mlp: nn.Module = layer.mlp
        self._input_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._qkv, self._output = qkv, output
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self._index = attention.layer_idx
        self._num_queries = config.num_attention_heads
        self._num_rotated = config.num_attention_heads + config.num_key_value_heads
        # Mistral's layers all have the window that the config names.
        windowed = config if config.model_type == "mistral" else attention
        self._window: int | None = getattr(windowed, "sliding_window", None)
        self._head_scale: Tensor | None = None
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm, attention.k_norm
            self._epsilon: float = q.variance_epsilon
            self._head_scale = torch.cat(
                [
                    q.weight.expand(config.num_attention_heads, -1),
                    k.weight.expand(config.num_key_value_heads, -1),
                ]
            )

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: PromptKeysValues | RunningKeysValues,
        **_: Any,
    ) -> Tensor:
        """[B, T, D] to [B, T, D], in place."""
        x_BTD = hidden_states
        qkv = self._qkv(_norm(self._input_norm, x_BTD)).unflatten(-1, (-1, self._head_dim))
        rotated = self._rotated(qkv[:, :, : self._num_rotated], *position_embeddings)
        query = rotated[:, :, : self._num_queries].transpose(1, 2)
        key = rotated[:, :, self._num_queries :].transpose(1, 2)
        value = qkv[:, :, self._num_rotated :].transpose(1, 2)
        key, value = past_key_values.update(key, value, self._index)
        attended = past_key_values.attend(query, key, value, self._scaling, self._window)
        x_BTD = x_BTD.add_(self._output(attended.transpose(1, 2).flatten(2)))
        return x_BTD.add_(self.mlp(_norm(self._mlp_norm, x_BTD)))

    def _rotated(self, x_BTHK: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        if self._head_scale is not None:
            x_BTHK = F.rms_norm(x_BTHK, (self._head_dim,), None, self._epsilon)
            x_BTHK.mul_(self._head_scale)
        turned = x_BTHK.roll(self._head_dim // 2, -1).mul_(signed_sin)
        return (x_BTHK * cos).add_(turned)


class SignedRotation(nn.Module):
    """A model's rotary embedding, made ready once a step: cos, and sin with the sign of the half
    that it multiplies, both [B, T, 1, K]."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self._rotary = rotary

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(x, position_ids)
        half = sin.shape[-1] // 2
        signed_sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos.unsqueeze(2), signed_sin.unsqueeze(2)


def fusable_layers(module: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder layers that a FusedLayer can stand in for, by name; none, or all of a model."""
    config, layers = module.config.get_text_config(), decoder_layers(module)
    rotary: Any = getattr(backbone(module), "rotary_emb", None)
    if config.model_type not in FAMILIES or layers is None or rotary is None:
        return {}
    first: Any = layers[0]
    if 2 * rotary.inv_freq.shape[0] != first.self_attn.head_dim:  # rotates parts of heads
        return {}
    names = {id(layer): name for name, layer in module.named_modules()}
    return {names[id(layer)]: layer for layer in layers}


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
