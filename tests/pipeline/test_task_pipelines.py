"""Every task trained by the real DAG: the ready configs on a tiny model and real text, and a task
and a paradigm from outside the repository."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.workflow import ROOT, Workflow
from tinsmith.config import ModelSettings, TinyModel
from tinsmith.models import prepare_model

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
SUMS = {"kind": "file", "path": "sums.jsonl", "held_out": 8}
CHOICES = {"kind": "file", "path": "choice.jsonl", "held_out": 8, "extra_fields": ["choices"]}
# What is changed in each config beside its model and sizes, and the terms of its rewards.
READY: dict[str, tuple[dict[str, Any], set[str]]] = {
    "summary": ({"stages": [WARM_UP, GRPO], "data": {"held_out": 8}}, {"compression", "rouge"}),
    "constrained": (
        {"data": {"held_out": 8}},
        {"forbidden", "format", "keywords", "max_words"},
    ),
    "multiple-choice": ({"data": CHOICES, "task": {"answers": "letter"}}, {"correct"}),
    "qwen3-4b-gsm8k": ({"data": SUMS}, {"correct", "format"}),
    "llama-3.1-8b-gsm8k": ({"data": SUMS}, {"correct", "format"}),
    "hosted": ({"data": SUMS}, {"correct", "format"}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny = TinyModel(kind="tiny", hidden_size=64, pretrain_steps=60)
    settings = ModelSettings(model=tiny, digits=1, operations=("+",))
    prepare_model(settings, folder, folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    """The files that the configs read: sums as GSM8K writes them, and Debian's descriptions."""
    sums = [(a, b) for a in range(10) for b in range(10)]
    write_jsonl(
        folder / "sums.jsonl",
        [{"question": f"{a}+{b}", "answer": f"{a} and {b}.\n#### {a + b}"} for a, b in sums],
    )
    if not Path("/var/lib/dpkg/status").is_file():
        pytest.skip("needs the descriptions of Debian packages")
    for kind in ("summary", "choice", "constrained"):
        command = ["scripts.debian_problems", kind, str(folder / f"{kind}.jsonl")]
        subprocess.run(
            [sys.executable, "-m", *command, "--max-characters=160"], cwd=ROOT, check=True
        )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", READY)
def test_a_ready_config_trains_a_tiny_model(name: str, model: Path, tmp_path: Path) -> None:
    changes, terms = READY[name]
    workflow = Workflow(tmp_path, {}, stand_ins=False)
    write_data(tmp_path)
    changed = {**SMALL, "model": {"kind": "path", "path": str(model)}, **changes}
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
    for row in read_jsonl(tmp_path / LAST / "evaluation/samples.jsonl"):
        assert set(row["reward_terms"]) <= terms
        assert row["reward"] == pytest.approx(sum(row["reward_terms"].values()))


def blocks(page: str) -> tuple[str, str, dict[str, Any]]:
    """The file's name, its Python and the config of a page's worked example."""
    text = (ROOT / "docs" / page).read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    config = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(code) == len(config) == 1
    name = re.match(r"# (\w+\.py), in the folder", code[0])
    assert name is not None
    return name[1], code[0], yaml.safe_load(config[0])


def test_the_task_and_the_paradigm_of_the_docs_work_from_the_users_folder(
    model: Path, tmp_path: Path
) -> None:
    config = {**SMALL, "model": {"kind": "path", "path": str(model)}}
    for page in ("add-a-task.md", "add-a-paradigm.md"):
        name, code, section = blocks(page)
        (tmp_path / name).write_text(code)
        config |= section
    numbers = random.Random(0).sample(range(1000, 10_000), 80)
    write_jsonl(tmp_path / "numbers.jsonl", [{"question": str(number)} for number in numbers])
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
