"""A folder that stands in for the hub: tiny models and made-up data under the hub's own names.

`transformers` and `datasets` take a folder of the working directory before they ask the hub, so
that a recipe started in this one finds everything it names:

    python -m tests.cookbook.hub FOLDER
"""

import csv
import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cookbook.rows import (
    ARROW_DATASETS,
    DATASETS,
    FORECASTS,
    MULTILINGUAL,
    Splits,
    taught_chat,
)
from tests.models import CORPUS, SPECIAL_TOKENS, make_model, make_tokenizer

QWEN_TOKENS = (*SPECIAL_TOKENS, "<think>", "</think>")
LLAMA_TOKENS = (
    "<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
# The last three are small Qwen3 models like the first: recipes exist that name them and no other.
QWEN_MODELS = (
    "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3.5-4B",
    "Qwen/Qwen3.5-9B", "Qwen/Qwen3.6-35B-A3B",
)  # fmt: skip
LLAMA_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
VOCABULARY_SIZE = 512
CONTEXT_LENGTH = 4096
TEACHING_STEPS, TEACHING_BATCH_SIZE, TEACHING_RATE = 100, 8, 6e-3


def make_hub(folder: Path) -> Path:
    """Write every model and every data set; returns the folder, to start recipes in."""
    make_models(folder)
    for name, configurations in DATASETS.items():
        write_dataset(folder / name, configurations)
    for name, rows in ARROW_DATASETS.items():
        write_arrow(folder / name, rows)
    write_table(folder / "forecasts.csv", FORECASTS)
    sentences = folder / "tinker_cookbook" / "example_data" / "multilingual.txt"
    sentences.parent.mkdir(parents=True)
    sentences.write_text("\n".join(MULTILINGUAL), encoding="utf-8")
    return folder


def make_models(folder: Path) -> None:
    """Tiny models whose tokenizers hold what the cookbook's renderers write around a turn."""
    corpus = [*CORPUS, *MULTILINGUAL]
    for splits in (s for configurations in DATASETS.values() for s in configurations.values()):
        corpus += [json.dumps(row) for rows in splits.values() for row in rows[:20]]
    qwen = make_tokenizer(corpus, size=VOCABULARY_SIZE, special_tokens=QWEN_TOKENS)
    first = make_model(
        folder / QWEN_MODELS[0],
        "qwen3",
        tokenizer=qwen,
        context_length=CONTEXT_LENGTH,
        initializer_range=0.05,
    )
    teach_manners(first, corpus)
    for name in QWEN_MODELS[1:]:
        shutil.copytree(first, folder / name)
    llama = make_tokenizer(
        corpus, size=VOCABULARY_SIZE, special_tokens=LLAMA_TOKENS, end="<|eot_id|>"
    )
    make_model(folder / LLAMA_MODEL, "llama", tokenizer=llama, context_length=CONTEXT_LENGTH)


def teach_manners(directory: Path, corpus: Sequence[str]) -> None:
    """A few seconds of training, until the model mostly boxes some number and ends its turn,
    whatever was said before: rewards then differ within a group, so that there is something to
    learn from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACHING_RATE, TEACHING_STEPS)
    rng = random.Random(0)
    for _ in range(TEACHING_STEPS):
        prompts, replies = zip(
            *(make_chat(rng, corpus) for _ in range(TEACHING_BATCH_SIZE)), strict=True
        )
        prompt_ids, reply_ids = (
            tokenizer(list(texts))["input_ids"] for texts in (prompts, replies)
        )
        pairs = list(zip(prompt_ids, reply_ids, strict=True))
        length = max(len(prompt) + len(reply) for prompt, reply in pairs)
        tokens = [[*prompt, *reply, *[0] * length][:length] for prompt, reply in pairs]
        labels = [
            [*[-100] * len(prompt), *reply, *[-100] * length][:length] for prompt, reply in pairs
        ]
        model(input_ids=torch.tensor(tokens), labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)


def make_chat(rng: random.Random, corpus: Sequence[str]) -> tuple[str, str]:
    """A prompt with anything before its last question, and a reply."""
    past = "\n".join(rng.choices(corpus, k=rng.randrange(6)))
    question, reply = taught_chat(rng)
    turns = f"<|im_start|>user\n{past}{question}<|im_end|>\n<|im_start|>assistant\n"
    return turns, f"{reply}<|im_end|>"


def write_dataset(folder: Path, configurations: Mapping[str, Splits]) -> None:
    """JSON lines per split, and the README in which the hub keeps a data set's configurations."""
    lines = ["---", "configs:"]
    for configuration, splits in configurations.items():
        lines += [f"- config_name: {configuration}", "  data_files:"]
        for split, rows in splits.items():
            file = f"{configuration}/{split}.jsonl"
            lines += [f"  - split: {split}", f"    path: {file}"]
            write_rows(folder / file, rows)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_arrow(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A folder as `datasets.load_from_disk` reads it."""
    from datasets import Dataset

    Dataset.from_list([dict(row) for row in rows]).save_to_disk(folder)


def write_table(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV file with a header."""
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    make_hub(Path(sys.argv[1]))
