"""Tiny random models on the disk, complete enough for any Hugging Face or Tinker program."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT_LENGTH = 512
VOCABULARY_SIZE = 400
INITIALIZER_RANGE = 0.15
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    *(f"{a} + {b} = {a + b}" for a in range(40) for b in range(0, 40, 7)),
    "user", "assistant", "system", "the answer to the question is", "What is the sum of",
    "stop here", "\u00fcber \u4f60\u597d \U0001f600",
]  # fmt: skip


def changed_model(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a model whose config says something else."""
    shutil.copytree(source, target)
    config = target / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return target


def make_model(
    directory: Path,
    architecture: str,
    *,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    context_length: int = CONTEXT_LENGTH,
    initializer_range: float = INITIALIZER_RANGE,
    head_dim: int | None = None,
) -> Path:
    """Write a random `qwen3` (tied embeddings, query and key norms) or `llama` model.

    `head_dim` of None is 16 and 8, smaller than what vLLM computes on a CPU.

    Its generation config asks for nearly greedy sampling, which nobody who serves it may heed.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": context_length,
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(20)
        if architecture == "qwen3":
            model = Qwen3ForCausalLM(
                Qwen3Config(hidden_size=48, intermediate_size=96, num_key_value_heads=2,
                            head_dim=head_dim or 16, tie_word_embeddings=True, **sizes)
            )  # fmt: skip
        else:
            model = LlamaForCausalLM(
                LlamaConfig(hidden_size=32, intermediate_size=64, num_key_value_heads=1,
                            head_dim=head_dim, tie_word_embeddings=False, **sizes)
            )  # fmt: skip
    model.save_pretrained(directory)
    config = {"eos_token_id": tokenizer.eos_token_id, "do_sample": True, "temperature": 0.01}
    config |= {"top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "max_length": 7}
    (directory / "generation_config.json").write_text(json.dumps(config))
    return directory


def make_tokenizer(
    corpus: Sequence[str] = CORPUS,
    *,
    size: int = VOCABULARY_SIZE,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    end: str = "<|im_end|>",
) -> "PreTrainedTokenizerFast":
    """A byte-level BPE trained on the corpus, with a ChatML template.

    `end` closes a turn; the first special token pads.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=special_tokens[0]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
