"""The random models that speed is measured on."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

# The sizes of Qwen3 as published, and those that a CPU is measured with.
_SHARED = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
PRESETS: dict[str, dict[str, Any]] = {
    "8m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
    "29m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "100m": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 13,
             "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64},
    "0.6b": _SHARED | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                       "num_attention_heads": 16},
    "4b": _SHARED | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
                     "num_attention_heads": 32},
    "8b": _SHARED | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                     "num_attention_heads": 32, "tie_word_embeddings": False},
}  # fmt: skip
FOR_A_CPU = ("8m", "29m", "100m")
CONTEXT_LENGTH = 2048
END = "<|end|>"


def make_model(directory: Path, preset: str = "29m", device: str = "cpu") -> Path:
    """A random Qwen3, float32 from a CPU and bfloat16 from a GPU, whose tokens are bytes."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "tie_word_embeddings": True} | PRESETS[preset]
    config = Qwen3Config(
        max_position_embeddings=CONTEXT_LENGTH, bos_token_id=None, eos_token_id=None, **sizes
    )
    config.dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(config, dtype=config.dtype)
    model.save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(directory)
    return directory
