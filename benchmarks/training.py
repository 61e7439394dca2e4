"""Training: one LoRA step of the local backend, through SDK and HTTP, beside PEFT and TRL.

`python -m benchmarks.training`. Rank 32 on all linear layers, AdamW, float32, of 64 sequences of 64
to 192 tokens with a loss on every token, and of 4 prompts of 512 tokens with 8 completions of 32
each and a loss on those alone. The peers: TRL's SFTTrainer (a call of `train` for one step);
PEFT as one writes it first, micro-batches of 8 in the given order with the model's own loss; and
PEFT sorted by length with logits only where the loss needs them, to which the ratios are.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tinker import types
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import (
    MODEL_NAME,
    Contender,
    find_trl,
    measure,
    parse_arguments,
    report,
    service,
)

MICRO_BATCH = 8
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
LORA = LoraConfig(r=32, lora_alpha=32, target_modules=LAYERS)


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence, and how many of its first tokens carry no loss."""

    tokens: list[int]
    num_prompt: int = 0


def main() -> None:
    arguments = parse_arguments("one LoRA training step beside PEFT and TRL")
    find_trl()
    cases = {"64 x 64-192 tokens": ragged(), "4 x 512 + 8 x 32 tokens": prompted()}
    results = {}
    with service(arguments) as (client, directory), tempfile.TemporaryDirectory() as scratch:
        for name, all_rows in cases.items():
            rows = all_rows[:: arguments.every]
            sides = {
                "tinsmith serve (tinker SDK)": _tinsmith_step(client, rows),
                "TRL SFTTrainer": _trl_step(directory, rows, Path(scratch)),
                "PEFT, padded micro-batches of 8": _peft_step(directory, rows),
                "PEFT, sorted, logits as needed": _sorted_peft_step(directory, rows),
            }
            num_tokens = sum(len(row.tokens) for row in rows)
            contenders = [Contender(side, run, num_tokens) for side, run in sides.items()]
            results[name] = measure(contenders, arguments.repeats)
    report("LoRA step, float32, rank 32, all linear layers", results, arguments)


def ragged() -> list[Row]:
    """64 sequences of 64 to 192 tokens."""
    rng = random.Random(0)
    return [Row(_tokens(rng, rng.randint(64, 192))) for _ in range(64)]


def prompted() -> list[Row]:
    """4 prompts of 512 tokens with 8 completions of 32."""
    rng = random.Random(1)
    prompts = [_tokens(rng, 512) for _ in range(4)]
    return [Row(prompt + _tokens(rng, 32), 512) for prompt in prompts for _ in range(8)]


def _tokens(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(256) for _ in range(size)]


def datum(row: Row) -> types.Datum:
    """A row for cross_entropy."""
    weights = np.ones(len(row.tokens) - 1, np.float32)
    weights[: max(0, row.num_prompt - 1)] = 0
    return types.Datum(
        model_input=types.ModelInput.from_ints(row.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(np.array(row.tokens[1:])),
            "weights": types.TensorData.from_numpy(weights),
        },
    )


def _tinsmith_step(client: tinker.ServiceClient, rows: Sequence[Row]) -> Callable[[], None]:
    training = client.create_lora_training_client(MODEL_NAME, rank=32, seed=0).result()
    data = [datum(row) for row in rows]

    def step() -> None:
        scored = training.forward_backward(data, "cross_entropy")
        stepped = training.optim_step(types.AdamParams(learning_rate=1e-5))
        scored.result()
        stepped.result()

    return step


def _peft_step(directory: Path, rows: Sequence[Row]) -> Callable[[], None]:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(directory, dtype="float32"), LORA)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        for start in range(0, len(rows), MICRO_BATCH):
            ids, labels, mask = _padded(rows[start : start + MICRO_BATCH])
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _sorted_peft_step(directory: Path, rows: Sequence[Row]) -> Callable[[], None]:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(directory, dtype="float32"), LORA)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ordered = sorted(rows, key=lambda row: len(row.tokens))

    def step() -> None:
        for start in range(0, len(ordered), MICRO_BATCH):
            ids, labels, mask = _padded(ordered[start : start + MICRO_BATCH])
            inner: Any = model.base_model.model
            hidden = inner.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
            is_scored = labels[:, 1:] != -100
            logits = inner.lm_head(hidden[is_scored])
            F.cross_entropy(logits, labels[:, 1:][is_scored], reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, labels and attention mask, padded on the right."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        size = len(row.tokens)
        ids[i, :size] = torch.tensor(row.tokens)
        labels[i, row.num_prompt : size] = ids[i, row.num_prompt : size]
        mask[i, :size] = 1
    return ids, labels, mask


def _trl_step(directory: Path, rows: Sequence[Row], scratch: Path) -> Callable[[], None]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports] benchmarks alone

    data = [
        {
            "input_ids": row.tokens,
            "completion_mask": [int(i >= row.num_prompt) for i in range(len(row.tokens))],
        }
        for row in rows
    ]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype="float32"),
        args=SFTConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=-(-len(rows) // MICRO_BATCH),
            max_steps=1,
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            learning_rate=1e-5,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(directory, pad_token="<|end|>"),
        peft_config=LORA,
    )
    return lambda: trainer.train()


if __name__ == "__main__":
    main()
