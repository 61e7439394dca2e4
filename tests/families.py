"""Small models of families that faster layers know: biases, windows, shared keys, head norms."""

from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "initializer_range": 0.2, "max_position_embeddings": 512,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 5}


def llama(**more: Any) -> PreTrainedModel:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    sizes = SIZES | more
    return LlamaForCausalLM(
        LlamaConfig(attention_bias=True, mlp_bias=True, rope_parameters=rope, **sizes)
    )


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, **WINDOW))


def qwen2() -> PreTrainedModel:
    layers = ["full_attention", "sliding_attention", "full_attention"]
    return Qwen2ForCausalLM(
        Qwen2Config(use_sliding_window=True, layer_types=layers, **SIZES, **WINDOW)
    )


def qwen3(**more: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **more))


def qwen3_gelu() -> PreTrainedModel:
    return qwen3(hidden_act="gelu")


def qwen2_moe() -> PreTrainedModel:
    """Its layers, but not what it tells its attention function, have a window."""
    sizes: dict[str, Any] = SIZES | WINDOW
    sizes |= {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 40, "num_experts": 4}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(use_sliding_window=True, **sizes))
    model.set_experts_implementation("eager")  # the other ones know no float64
    return model
