"""Training: one LoRA step of the local backend, through SDK and HTTP, beside PEFT and TRL.

`python -m benchmarks.training`. Rank 32 on all linear layers, AdamW, of 64 sequences of 64 to 192
tokens with a loss on every token, and of a prompt of 512 tokens with 8 completions of 32 and a loss
on those alone. The peers: TRL's SFTTrainer (a call of `train` for one step, batches of similar
lengths, no adapter on the unembedding, which it refuses); PEFT as one writes it first, with
micro-batches of 8 in the given order and the model's own loss; and PEFT sorted by length with
logits only where the loss needs them, to which the ratios are.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tinker
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.arithmetic import RANK, count_weights
from benchmarks.clock import Contender, measure
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    OURS,
    Arguments,
    Case,
    find_trl,
    parse_arguments,
    report,
    service,
)
from benchmarks.models import END
from benchmarks.work import Row, datum, prompted_rows, ragged_rows, train

MICRO_BATCH = 8
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(r=RANK, lora_alpha=32, target_modules=[*LAYERS, "lm_head"])
TRL_LORA = LoraConfig(r=RANK, lora_alpha=32, target_modules=LAYERS)
CASES: dict[str, Callable[[], list[Row]]] = {
    "64 x 64-192 tokens": ragged_rows,
    "512 tokens + 8 x 32 tokens": prompted_rows,
}


def main() -> None:
    arguments = parse_arguments("one LoRA training step beside PEFT and TRL", list(CASES))
    find_trl()
    with service(arguments) as (client, directory), tempfile.TemporaryDirectory() as scratch:
        weights = count_weights(directory)
        results = []
        for name in arguments.cases:
            rows = CASES[name]()[:: arguments.every]
            sides = {
                OURS: _tinsmith_step(client, rows),
                "TRL SFTTrainer": _trl_step(arguments, directory, rows, Path(scratch)),
                "PEFT, padded micro-batches of 8": _peft_step(arguments, directory, rows),
                "PEFT, sorted, logits as needed": _sorted_peft_step(arguments, directory, rows),
            }
            num_tokens = sum(len(row.tokens) for row in rows)
            flops = weights.training_flops(rows)
            contenders = [Contender(side, run, num_tokens, flops) for side, run in sides.items()]
            results.append(Case(name, measure(name, contenders, arguments.repeats)))
    report("LoRA step, rank 32, all linear layers", arguments, results)


def _tinsmith_step(client: tinker.ServiceClient, rows: Sequence[Row]) -> Callable[[], None]:
    training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
    data = [datum(row) for row in rows]
    return lambda: train((training, data))


def _peft_step(
    arguments: Arguments, directory: Path, rows: Sequence[Row]
) -> Callable[[], torch.Tensor]:
    model, optimizer = _peft(arguments, directory)

    def step() -> torch.Tensor:
        for start in range(0, len(rows), MICRO_BATCH):
            ids, labels, mask = _padded(rows[start : start + MICRO_BATCH], arguments.device)
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        return _update(optimizer)

    return step


def _sorted_peft_step(
    arguments: Arguments, directory: Path, rows: Sequence[Row]
) -> Callable[[], torch.Tensor]:
    model, optimizer = _peft(arguments, directory)
    ordered = sorted(rows, key=lambda row: len(row.tokens))

    def step() -> torch.Tensor:
        for start in range(0, len(ordered), MICRO_BATCH):
            ids, labels, mask = _padded(ordered[start : start + MICRO_BATCH], arguments.device)
            inner: Any = model.base_model.model
            hidden = inner.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
            is_scored = labels[:, 1:] != -100
            logits = inner.lm_head(hidden[is_scored])
            F.cross_entropy(logits, labels[:, 1:][is_scored], reduction="sum").backward()
        return _update(optimizer)

    return step


def _peft(arguments: Arguments, directory: Path) -> tuple[Any, torch.optim.Optimizer]:
    base: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=arguments.dtype)
    model = get_peft_model(base.to(arguments.device), LORA)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def _update(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Take the step, and wait for it: a GPU works behind the program that asks it."""
    optimizer.step()
    optimizer.zero_grad()
    return optimizer.param_groups[0]["params"][0].detach().sum().cpu()


def _padded(rows: Sequence[Row], device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, labels and attention mask, padded on the right."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        size = len(row.tokens)
        ids[i, :size] = torch.tensor(row.tokens)
        labels[i, row.num_prompt : size] = ids[i, row.num_prompt : size]
        mask[i, :size] = 1
    return ids.to(device), labels.to(device), mask.to(device)


def trl_options(arguments: Arguments, scratch: Path) -> dict[str, Any]:
    """What TRL's trainers have in common: one step, as fast as they go, nothing written."""
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": MICRO_BATCH,
        "max_steps": 1,
        "gradient_checkpointing": False,
        "bf16": arguments.device != "cpu",
        "use_cpu": arguments.device == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": arguments.device != "cpu",
    }


def _trl_step(
    arguments: Arguments, directory: Path, rows: Sequence[Row], scratch: Path
) -> Callable[[], object]:
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
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=arguments.dtype),
        args=SFTConfig(
            **trl_options(arguments, scratch),
            gradient_accumulation_steps=-(-len(rows) // MICRO_BATCH),
            max_length=None,
            completion_only_loss=True,
            train_sampling_strategy="group_by_length",
            learning_rate=1e-5,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(directory, pad_token=END),
        peft_config=TRL_LORA,
    )
    return trainer.train


if __name__ == "__main__":
    run(main)
