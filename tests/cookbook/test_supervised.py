"""Supervised recipes, started as users start them: through `tinsmith run`."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.cookbook.recipes import ROOT, Metrics, read_metrics, recipe_command, run_program

MODEL = "Qwen/Qwen3-8B-Base"
OPTIONS = (f"model_name={MODEL}", "batch_size=8", "lora_rank=8", "learning_rate=1e-3",
           "max_steps=6", "save_every=3")  # fmt: skip


def run_sl_loop(hub: Path, environment: dict[str, str], log_path: str) -> Metrics:
    """`sl_loop` through `tinsmith run`, whose server starts and stops with it."""
    tinsmith = [sys.executable, "-m", "tinsmith.cli", "run", f"--model={MODEL}", "--threads=1"]
    command = [*tinsmith, "--", *recipe_command("sl_loop", f"log_path={log_path}", *OPTIONS)]
    run_program(command, hub, environment | {"PYTHONPATH": str(ROOT)})
    return read_metrics(hub / log_path)


def test_sl_loop_resumed_from_its_checkpoint_logs_what_the_uninterrupted_run_did(
    hub: Path, environment: dict[str, str]
):
    """Bit for bit, on another server: both continue the same weights and optimizer state."""
    whole = run_sl_loop(hub, environment, "runs/whole")
    assert [step["step"] for step in whole] == list(range(6))
    assert whole[5]["train_mean_nll"] < whole[0]["train_mean_nll"] - 0.1

    cut = hub / "runs" / "cut"  # as a run is left that was killed in its fifth step
    shutil.copytree(hub / "runs" / "whole", cut)
    first, *_ = (cut / "checkpoints.jsonl").read_text().splitlines()
    assert json.loads(first)["batch"] == 3
    (cut / "checkpoints.jsonl").write_text(first + "\n")
    (cut / "metrics.jsonl").unlink()

    resumed = run_sl_loop(hub, environment, "runs/cut")
    assert [step["step"] for step in resumed] == [3, 4, 5]
    for after, before in zip(resumed, whole[3:], strict=True):
        assert after["train_mean_nll"] == pytest.approx(before["train_mean_nll"], rel=1e-9)
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-9)
