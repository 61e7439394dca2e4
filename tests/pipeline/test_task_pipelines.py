"""Every task trained by the real DAG: the ready configs on a tiny model and real text, and a task
and a paradigm from outside the repository."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.debian_problems import NOUNS, STATUS
from tests.pipeline.workflow import ROOT, Workflow

GRPO = {"kind": "grpo", "steps": 2, "problems_per_step": 4, "samples_per_problem": 4,
        "max_tokens": 12, "eval_problems": 4, "no_signal": "skip"}  # fmt: skip
WARM_UP = {"kind": "supervised", "steps": 4, "batch_size": 8, "eval_problems": 4, "max_tokens": 12}
EVALUATION = {"num_problems": 8, "samples_per_problem": 2, "max_tokens": 12, "pass_at_k": [1, 2]}
SMALL: dict[str, Any] = {
    "backend": {"kind": "local", "device": "cpu", "threads": 1, "gpus": 0},
    "lora": {"rank": 4},
    "stages": [GRPO],
    "evaluation": EVALUATION,
}
LAST = "results/seed=0/grpo"
TARGET = (f"{LAST}/evaluation/evaluation.json",)
SUMS = {"kind": "file", "path": "sums.jsonl", "held_out": 12}
CHOICES = {"kind": "file", "path": "definition.jsonl", "held_out": 12, "extra_fields": ["choices"]}
# The programs that write the text that the configs read, and the file that each reads itself.
TEXTS = {
    "summary": STATUS,
    "constrained": STATUS,
    "definition": NOUNS,
}
CHOICE_TASK = {"answers": "text", "system_prompt": None}
# Enough to write a letter, whichever it is: then some are right.
LETTERS = WARM_UP | {"steps": 12, "learning_rate": 0.01}
# What is changed in each config beside its model and sizes, and the terms of its rewards.
READY: dict[str, tuple[dict[str, Any], set[str]]] = {
    "summary": ({"stages": [WARM_UP, GRPO], "data": {"held_out": 12}}, {"compression", "rouge"}),
    "constrained": (
        {"data": {"held_out": 12}},
        {"forbidden", "format", "keywords", "max_words"},
    ),
    "multiple-choice": (
        {"data": CHOICES, "task": CHOICE_TASK, "stages": [LETTERS, GRPO]},
        {"correct"},
    ),
    "qwen3-4b-gsm8k": ({"data": SUMS}, {"correct", "format"}),
    "llama-3.1-8b-gsm8k": ({"data": SUMS}, {"correct", "format"}),
    "hosted": ({"data": SUMS}, {"correct", "format"}),
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path, name: str) -> None:
    """The file that a config reads: sums as GSM8K writes them, or text of Debian's packages."""
    if name == "sums":
        sums = [(a, b) for a in range(10) for b in range(10)]
        rows = [{"question": f"{a}+{b}", "answer": f"{a} and {b}.\n#### {a + b}"} for a, b in sums]
        return write_jsonl(folder / "sums.jsonl", rows)
    if not TEXTS[name].is_file():
        pytest.skip(f"needs {TEXTS[name]}, of a Debian machine (envs/debian.txt)")
    out = str(folder / f"{name}.jsonl")
    limits = ("--max-characters=160", "--num-problems=200")
    command = [sys.executable, "-m", "scripts.debian_problems", name, out, *limits]
    subprocess.run(command, cwd=ROOT, check=True)
    return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", READY)
def test_a_ready_config_trains_a_tiny_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    changes, terms = READY[name]
    workflow = Workflow(tmp_path, {}, stand_ins=False)
    write_data(tmp_path, Path(changes["data"].get("path", f"{name}.jsonl")).stem)
    changed = {**SMALL, "model": {"kind": "path", "path": str(tiny_model)}, **changes}
    said = workflow.snakemake(
        *("--cores", "2", f"{LAST}/evaluation/evaluation.json"),
        *("--configfile", f"configs/{name}.yaml", "--config"),
        *(f"{key}={json.dumps(value)}" for key, value in changed.items()),
    )
    assert said.code == 0, said.text
    steps = read_jsonl(tmp_path / LAST / "metrics.jsonl")
    assert [step["step"] for step in steps] == [0, 1]
    logged = {key for step in steps for key in step if re.fullmatch(r"reward_\w+_mean", key)}
    assert logged == {f"reward_{term}_mean" for term in terms}
    if name == "multiple-choice":  # what the other tasks ask is beyond the tiny model
        assert any(step.get("num_trained_tokens", 0) > 0 for step in steps)
    for row in read_jsonl(tmp_path / LAST / "evaluation/samples.jsonl"):
        assert set(row["reward_terms"]) <= terms
        assert row["reward"] == pytest.approx(sum(row["reward_terms"].values()))


def blocks(page: str) -> tuple[str, str, dict[str, Any]]:
    """The file's name, its Python and the config of a page's first worked example."""
    text = (ROOT / "docs" / page).read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    config = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    name = re.match(r"# (\w+\.py), in the folder", code[0])
    assert name is not None
    return name[1], code[0], yaml.safe_load(config[0])


def test_the_task_and_the_paradigm_of_the_docs_work_from_the_users_folder(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = {}
    for page in ("add-a-task.md", "add-a-paradigm.md"):
        name, code, section = blocks(page)
        (tmp_path / name).write_text(code)
        config |= section
    assert config["stages"][0]["kind"] == GRPO["kind"]
    config |= {**SMALL, "model": {"kind": "path", "path": str(tiny_model)}}
    [command] = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/add-a-task.md").read_text(), re.DOTALL)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    workflow = Workflow(tmp_path, config, stand_ins=False)
    said = workflow.snakemake("--cores", "2", *TARGET)
    assert said.code == 0, said.text

    [step, _] = read_jsonl(tmp_path / LAST / "metrics.jsonl")
    assert {"reward_right_mean", "reward_likeness_mean"} <= step.keys()
    rows = read_jsonl(tmp_path / LAST / "evaluation/samples.jsonl")
    assert len(rows) == EVALUATION["num_problems"] * EVALUATION["samples_per_problem"] * 2
    step_0 = json.loads((tmp_path / LAST / "steps/training_step_0.json").read_text())
    assert any(any(sample["advantages"]) for sample in step_0["samples"])

    record = json.loads((tmp_path / LAST / "run_metadata.json").read_text())
    files = {blocks(page)[0] for page in ("add-a-task.md", "add-a-paradigm.md")}
    assert files <= record["inputs"].keys(), "what the user wrote is part of what the result is of"
    assert "Nothing to be done" in workflow.snakemake("--dry-run", *TARGET).text
    (tmp_path / min(files)).write_text(blocks("add-a-paradigm.md")[1] + "\n")
    assert "train_stage" in workflow.snakemake("--dry-run", *TARGET).text
