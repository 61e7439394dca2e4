"""Training: one LoRA step of the local backend, through SDK and HTTP, beside plain PEFT.

`python -m benchmarks.training`. 64 sequences of 64 to 192 tokens, cross-entropy on every token,
rank 32 on all linear layers, AdamW. The peer is what one writes first: micro-batches of 8 in the
given order, padded on the right, the model's own loss.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tinker
import torch
from peft import LoraConfig, get_peft_model
from tinker import types
from transformers import AutoModelForCausalLM

from benchmarks.harness import MODEL_NAME, Contender, measure, parse_arguments, report, service

MICRO_BATCH = 8


def main() -> None:
    arguments = parse_arguments("one LoRA training step beside plain PEFT")
    rng = random.Random(0)
    rows = [[rng.randrange(256) for _ in range(rng.randint(64, 192))] for _ in range(64)]
    num_tokens = sum(map(len, rows))
    with service(arguments) as (client, directory):
        contenders = [
            Contender("tinsmith serve (tinker SDK)", _tinsmith_step(client, rows), num_tokens),
            Contender("PEFT, padded micro-batches of 8", _peft_step(directory, rows), num_tokens),
        ]
        results = {"64 x 64-192 tokens": measure(contenders, arguments.repeats)}
    report("LoRA step, float32, rank 32, all linear layers", results, arguments)


def _tinsmith_step(client: tinker.ServiceClient, rows: Sequence[list[int]]):
    training = client.create_lora_training_client(MODEL_NAME, rank=32, seed=0).result()
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(np.array(row[1:])),
                "weights": types.TensorData.from_numpy(np.ones(len(row) - 1, np.float32)),
            },
        )
        for row in rows
    ]

    def step() -> None:
        scored = training.forward_backward(data, "cross_entropy")
        stepped = training.optim_step(types.AdamParams(learning_rate=1e-5))
        scored.result()
        stepped.result()

    return step


def _peft_step(directory: Path, rows: Sequence[list[int]]):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=32, lora_alpha=32, target_modules=[*targets, "lm_head"])
    model = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        for start in range(0, len(rows), MICRO_BATCH):
            batch = rows[start : start + MICRO_BATCH]
            longest = max(map(len, batch))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            model(
                input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
            ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
