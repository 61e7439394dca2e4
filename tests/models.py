"""Tiny random models on the disk, complete enough for any Hugging Face or Tinker program."""

import json
from pathlib import Path

CONTEXT_LENGTH = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    *(f"{a} + {b} = {a + b}" for a in range(40) for b in range(0, 40, 7)),
    "user", "assistant", "system", "the answer to the question is", "What is the sum of",
    "stop here", "\u00fcber \u4f60\u597d \U0001f600",
]  # fmt: skip


def make_model(directory: Path, architecture: str) -> Path:
    """Write a random `qwen3` (tied embeddings, query and key norms) or `llama` model.

    Its generation config asks for nearly greedy sampling, which nobody who serves it may heed.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(20)
        if architecture == "qwen3":
            model = Qwen3ForCausalLM(
                Qwen3Config(hidden_size=48, intermediate_size=96, num_key_value_heads=2,
                            head_dim=16, tie_word_embeddings=True, **sizes)
            )  # fmt: skip
        else:
            model = LlamaForCausalLM(
                LlamaConfig(hidden_size=32, intermediate_size=64, num_key_value_heads=1,
                            tie_word_embeddings=False, **sizes)
            )  # fmt: skip
    model.save_pretrained(directory)
    config = {"eos_token_id": tokenizer.eos_token_id, "do_sample": True, "temperature": 0.01}
    config |= {"top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "max_length": 7}
    (directory / "generation_config.json").write_text(json.dumps(config))
    return directory


def make_tokenizer():
    """A byte-level BPE of 400 tokens trained on the corpus, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
