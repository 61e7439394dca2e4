"""Debates through the DAG: the ready config, its model, problems and sizes made small."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.workflow import ROOT, Workflow

# The fixture runs both stages and three evaluations, which a busy machine takes long for.
pytestmark = pytest.mark.timeout(1800)
RUN = Path("results/seed=0")
SMALL = {"learning_rate": 0.0015, "problems_per_step": 16, "max_tokens": 8, "eval_problems": 8}
STEPS = {"rejection": 2, "grpo": 8}


def small(model: Path, steps: dict[str, int], **paradigm: Any) -> dict[str, Any]:
    """configs/debate.yaml for a machine without a GPU and for what the tiny model can read."""
    values = yaml.safe_load((ROOT / "configs/debate.yaml").read_text())
    stages = [stage | SMALL | {"steps": steps[stage["kind"]]} for stage in values["stages"]]
    short = {"argue_prompt": "{opponent}", "graded": "proposal"}
    return values | {
        "model": {"kind": "path", "path": str(model)},
        "backend": {"kind": "local"},
        "data": {"kind": "arithmetic"},
        "task": {"kind": "arithmetic"},
        "paradigm": values["paradigm"] | short | paradigm,
        "stages": stages,
        "evaluation": {"num_problems": 60, "max_tokens": 8},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workflow:
    """The default tiny model, which is judged by who is right."""
    opponent = {"kind": "pool", "every": 3}
    values = small(tiny_model, STEPS, judge={"kind": "ground_truth"}, opponent=opponent)
    workflow = Workflow(tmp_path_factory.mktemp("debate"), values, stand_ins=False)
    said = workflow.snakemake("--cores", "2", str(RUN / "grpo/evaluation/evaluation.json"))
    assert said.code == 0, said.text
    return workflow


def test_with_the_ground_truth_as_judge_the_reward_of_the_policy_rises(finished: Workflow) -> None:
    """Against the same opponent, the base, on problems that were held out."""
    found = {}
    for stage in ("base", "rejection", "grpo"):
        file = finished.folder / RUN / stage / "evaluation/evaluation.json"
        found[stage] = json.loads(file.read_text())
    assert found["grpo"]["reward_mean"] > found["base"]["reward_mean"] + 0.1
    assert found["grpo"]["accuracy"] > found["base"]["accuracy"] + 0.05


def test_the_policy_met_snapshots_of_itself_and_learnt_from_its_own_speeches_alone(
    finished: Workflow,
) -> None:
    step = json.loads((finished.folder / RUN / "grpo/steps/training_step_7.json").read_text())
    places = {(s["speaker"], s["place"]) for s in step["samples"]}
    assert places == {("policy", 0), ("opponent", 1), ("policy", 2), ("opponent", 3)}
    for sample in step["samples"]:
        if sample["speaker"] == "opponent":
            assert not sample["is_trained"]
            assert sample["reward"] is None
        else:
            verdict, correct = (sample["reward_terms"][name] for name in ("verdict", "correct"))
            assert sample["reward"] == verdict + correct
    assert "opponent</td>" in (finished.folder / RUN / "grpo/transcript.html").read_text()


def test_the_samples_of_an_evaluation_show_what_both_have_said(finished: Workflow) -> None:
    rows = (finished.folder / RUN / "grpo/evaluation/samples.jsonl").read_text().splitlines()
    assert len(rows) == 60 * 4
    row = json.loads(rows[0])
    assert row["speaker"] == "policy"
    assert [speaker for speaker, _ in row["said"]] == ["policy", "opponent"] * 2
    assert row["said"][0][1] == row["completion"]


def test_the_ready_config_runs_with_its_own_judge(tiny_model: Path, tmp_path: Path) -> None:
    values = small(tiny_model, {"rejection": 1, "grpo": 1})
    few = {"problems_per_step": 4, "samples_per_problem": 4}
    values["stages"] = [stage | few for stage in values["stages"]]
    workflow = Workflow(tmp_path, values, stand_ins=False)
    said = workflow.snakemake("--cores", "1", str(RUN / "grpo/checkpoint.json"))
    assert said.code == 0, said.text
    step = json.loads((tmp_path / RUN / "grpo/steps/training_step_0.json").read_text())
    verdicts = {sample["verdict"] for sample in step["samples"]}
    assert len(verdicts) > 2
    assert all(-1 < verdict < 1 for verdict in verdicts)
