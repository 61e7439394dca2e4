"""What several tests look at and takes a minute: a tiny model, and what a small pipeline leaves."""

from pathlib import Path

import pytest

from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import Workflow
from tinsmith.config import ModelSettings, TinyModel
from tinsmith.models import prepare_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny model, pretrained on the default problems; treat it as read-only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    settings = ModelSettings(model=TinyModel(kind="tiny"), digits=2, operations=("+",))
    prepare_model(settings, folder, folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The small pipeline, run to its end."""
    workflow = Workflow(tmp_path_factory.mktemp("pipeline"), CONFIG, stand_ins=False)
    said = workflow.snakemake("--cores", "2")
    assert said.code == 0, said.text
    return workflow
