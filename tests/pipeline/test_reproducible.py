"""A pipeline is a function of its config: twice the same, bit for bit, wherever and however."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import Workflow
from tinsmith.files import sha256

RUN = Path("results/seed=0")
STAGES = ("supervised", "grpo")
# What a clock says.
TIMES = {"tokens_per_s"}


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The small pipeline in another folder, with one job at a time and a server for each: what a
    server did before, and what ran beside it, must leave no trace."""
    config = CONFIG | {"backend": {"keep_s": 0}}
    workflow = Workflow(tmp_path_factory.mktemp("again"), config, stand_ins=False)
    said = workflow.snakemake("--cores", "1")
    assert said.code == 0, said.text
    return workflow


def digests(workflow: Workflow, pattern: str) -> dict[str, str]:
    """The SHA-256 of some files, by their paths."""
    files = [path for path in workflow.folder.glob(pattern) if path.is_file()]
    assert files, pattern
    return {str(path.relative_to(workflow.folder)): sha256(path) for path in sorted(files)}


def without_times(value: Any) -> Any:
    """JSON without the figures that depend on how fast something ran."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def lines(path: Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize(
    "pattern",
    [
        "models/tiny-*/*",
        "data/*/*.jsonl",
        f"{RUN}/*/weights/*.safetensors",
        f"{RUN}/export/adapter/*.safetensors",
        f"{RUN}/export/merged/*.safetensors",
        f"{RUN}/*/evaluation/*.jsonl",
        f"{RUN}/*/evaluation/evaluation.json",
        f"{RUN}/export/check.json",
    ],
)
def test_the_files_of_a_pipeline_are_the_same_bit_for_bit_wherever_it_runs(
    finished: Workflow, again: Workflow, pattern: str
) -> None:
    assert digests(finished, pattern) == digests(again, pattern)


@pytest.mark.parametrize("stage", STAGES)
def test_the_metrics_and_transcripts_of_a_stage_are_the_same_but_for_times(
    finished: Workflow, again: Workflow, stage: str
) -> None:
    folders = [workflow.folder / RUN / stage for workflow in (finished, again)]
    first, second = (lines(folder / "metrics.jsonl") for folder in folders)
    assert first == second
    for step in sorted((folders[0] / "steps").glob("*.json")):
        first, second = (
            without_times(json.loads((folder / "steps" / step.name).read_text()))
            for folder in folders
        )
        assert first == second
        assert first["samples"]
