"""The default pipeline's GRPO stage, sampled by a real vLLM engine on the CPU, and preempted."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.conftest import require_vllm
from tests.pipeline.workflow import ROOT, Workflow, workflow_environment

STAGE = "results/seed=0/grpo"
SMALL = {"steps": 3, "problems_per_step": 8, "samples_per_problem": 4, "eval_problems": 4}


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage that was preempted and called again, and what its log said when it was."""

    folder: Path
    log_when_preempted: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Finished:
    require_vllm()
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    [grpo] = [stage for stage in config["stages"] if stage["kind"] == "grpo"]
    backend = {"sampler": "vllm", "vllm_enforce_eager": True, "threads": 1, "device": "cpu"}
    config |= {
        "model": {"kind": "path", "path": str(tiny_model)},
        "backend": config["backend"] | backend,
        "stages": [grpo | SMALL],
    }
    workflow = Workflow(tmp_path_factory.mktemp("vllm"), config, stand_ins=False)
    words = ("--cores", "1", f"{STAGE}/checkpoint.json")
    preempt(workflow, *words)
    [log] = (workflow.folder / "logs").rglob("train.log")
    log_when_preempted = log.read_text()
    said = workflow.snakemake(*words)
    assert said.code == 0, said.text
    return Finished(workflow.folder, log_when_preempted)


def preempt(workflow: Workflow, *words: str) -> None:
    """Send SIGTERM after a step to every process of the stage, as SLURM does: the server's and the
    engine's too."""
    command = [sys.executable, "-m", "snakemake", *words]
    snakemake = subprocess.Popen(
        command, cwd=workflow.folder, env=workflow_environment(), stderr=subprocess.DEVNULL
    )
    while not list((workflow.folder / "results").rglob("training_step_0.json")):
        assert snakemake.poll() is None, "it ended before its first step"
        time.sleep(0.02)
    processes = psutil.Process(snakemake.pid).children(recursive=True)
    programs = ("scripts.train", "tinsmith.cli", "tinsmith/backend/vllm_worker")
    words_of = [(one, one.cmdline()[1:3]) for one in processes]
    ended = [one for one, words in words_of if any(w.endswith(programs) for w in words)]
    assert len(ended) == len(programs)
    for process in ended:
        process.terminate()
    assert snakemake.wait() != 0


def test_a_stage_that_is_preempted_ends_its_step_with_vllm_and_goes_on_from_there(
    finished: Finished,
):
    assert "told to stop by SIGTERM: saved after step" in finished.log_when_preempted
    assert "goes on at step" in next((finished.folder / "logs").rglob("train.log")).read_text()


def test_grpo_trains_on_what_vllm_sampled(finished: Finished):
    folder = finished.folder / STAGE
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == SMALL["steps"]
    log = next((finished.folder / "logs").rglob("*server*")).read_text()
    assert "vLLM 0.32.0 samples" in log
    for step in steps:
        assert abs(step["kl_nats"]) < 1e-4, "sampler and trainer are one policy"
