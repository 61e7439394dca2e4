"""The default pipeline's GRPO stage, sampled by a real vLLM engine on the CPU."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import require_vllm
from tests.pipeline.workflow import ROOT, Workflow

STAGE = "results/seed=0/grpo"
SMALL = {"steps": 3, "problems_per_step": 8, "samples_per_problem": 4, "eval_problems": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workflow:
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
    said = workflow.snakemake("--cores", "1", f"{STAGE}/checkpoint.json")
    assert said.code == 0, said.text
    return workflow


def test_grpo_trains_on_what_vllm_sampled(finished: Workflow):
    folder = finished.folder / STAGE
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == SMALL["steps"]
    log = next((finished.folder / "logs").rglob("*server*")).read_text()
    assert "vLLM 0.32.0 samples" in log
    for step in steps:
        assert abs(step["kl_nats"]) < 1e-4, "sampler and trainer are one policy"
