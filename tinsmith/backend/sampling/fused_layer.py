"""A decoder layer in few operations, for the families whose layers are of one plan.

Few operations matter where a step has few rows: then what PyTorch and Python do around each costs
more than the arithmetic.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tinsmith.backend.compiled.passes import normalize
from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.model.families import head_norm, sliding_window
from tinsmith.backend.sampling.keys_values import RunningKeysValues
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues


class FusedLayer(nn.Module):
    """Computes what the layer it replaces does, queries, keys and values by one product."""

    def __init__(self, layer: Any, qkv: nn.Module, output: nn.Module) -> None:
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
        self._window = sliding_window(attention)
        self._head_norm = head_norm(attention)

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
        if isinstance(past_key_values, RunningKeysValues) and openmp() is not None:
            query, key, value = past_key_values.place(
                qkv[:, 0], position_embeddings, self._head_norm, self._index
            )
        else:
            rotated = self._rotated(qkv[:, :, : self._num_rotated], *position_embeddings)
            query = rotated[:, :, : self._num_queries].transpose(1, 2)
            key = rotated[:, :, self._num_queries :].transpose(1, 2)
            value = qkv[:, :, self._num_rotated :].transpose(1, 2)
            key, value = past_key_values.update(key, value, self._index)
        attended = past_key_values.attend(query, key, value, self._scaling, self._window)
        x_BTD = x_BTD.add_(self._output(attended.transpose(1, 2).flatten(2)))
        return x_BTD.add_(self.mlp(_norm(self._mlp_norm, x_BTD)))

    def _rotated(self, x_BTHK: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        if self._head_norm is not None:
            weight, epsilon = self._head_norm
            x_BTHK = F.rms_norm(x_BTHK, (self._head_dim,), None, epsilon).mul_(weight)
        turned = x_BTHK.roll(self._head_dim // 2, -1).mul_(signed_sin)
        return (x_BTHK * cos).add_(turned)


def _norm(norm: Any, x: Tensor) -> Tensor:
    if openmp() is not None:
        return normalize(x, norm.weight, norm.variance_epsilon)[0]
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
