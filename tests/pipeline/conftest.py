"""The model that the pipelines train: pretraining it takes a minute, so it is made once."""

from pathlib import Path

import pytest

from tinsmith.config import ModelSettings, TinyModel
from tinsmith.models import prepare_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny model, pretrained on the default problems; treat it as read-only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    settings = ModelSettings(model=TinyModel(kind="tiny"), digits=2, operations=("+",))
    prepare_model(settings, folder, folder)
    return folder
