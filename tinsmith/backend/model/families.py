"""The families of models whose decoder layers are of one plan, which faster layers compute too."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel, backbone, decoder_layers

# x + attention(norm(x)), then x + mlp(norm(x)), with rotated queries and keys of whole heads.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


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


def trains_by_hand(base: BaseModel) -> bool:
    """Whether backward passes by hand pay: on a CPU, whose memory is what they save, in float32 or
    more, and with weights that stay where they are."""
    return base.device.type == "cpu" and base.dtype.itemsize >= 4 and base.shards is None


def fusable_layers(module: PreTrainedModel) -> dict[str, Any]:
    """The decoder layers of the plan that FAMILIES share, by name; none, or all of a model."""
    config, layers = module.config.get_text_config(), decoder_layers(module)
    rotary: Any = getattr(backbone(module), "rotary_emb", None)
    if config.model_type not in FAMILIES or layers is None or rotary is None:
        return {}
    first: Any = layers[0]
    if 2 * rotary.inv_freq.shape[0] != first.self_attn.head_dim:  # rotates parts of heads
        return {}
    names = {id(layer): name for name, layer in module.named_modules()}
    return {names[id(layer)]: layer for layer in layers}


def sliding_window(attention: Any) -> int | None:
    """How many tokens one of a layer sees at most. Some families name it in the layer; some, which
    may tell their attention function of none, in the config, for all layers or those of a kind."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    config = attention.config
    if not hasattr(type(config), "sliding_window"):  # a key that the family knows nothing of
        return None
    kinds, is_used = getattr(config, "layer_types", None), getattr(config, "use_sliding_window", 1)
    if not is_used or (kinds and kinds[attention.layer_idx] != "sliding_attention"):
        return None
    return config.sliding_window or None  # 0, where it is not used


def head_norm(attention: Any) -> tuple[Tensor, float] | None:
    """Weights [heads, K] and epsilon of the norms of queries, then keys, where there are such."""
    if not hasattr(attention, "q_norm"):
        return None
    q, k, config = attention.q_norm, attention.k_norm, attention.config
    weights = [
        q.weight.detach().expand(config.num_attention_heads, -1),
        k.weight.detach().expand(config.num_key_value_heads, -1),
    ]
    return torch.cat(weights), q.variance_epsilon
