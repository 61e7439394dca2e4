"""Model directories: what is refused before anything loads it."""

import json
from pathlib import Path

import pytest

from tinsmith.config import ModelSettings, PathModel
from tinsmith.errors import TinsmithError
from tinsmith.models import check_model_directory, prepare_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that has all the files of a model, in name."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(TinsmithError) as caught:
        check_model_directory(folder)
    assert "config: model.path" in str(caught.value)
    return str(caught.value)


def test_a_complete_directory_is_accepted_in_place(model: Path, tmp_path: Path) -> None:
    before = sorted(model.iterdir())
    settings = ModelSettings(model=PathModel(kind="path", path=str(model)))
    prepare_model(settings, model, tmp_path / "download")
    assert sorted(model.iterdir()) == before


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} must exist" in refusal(tmp_path / "no")


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "must hold its weights as safetensors, but model.safetensors is missing" in refusal(
        model
    )


def test_an_empty_weights_file_is_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is missing or empty" in refusal(model)


def test_pickled_weights_are_refused_with_what_to_do(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pytorch_model*.bin must be saved again as safetensors" in refusal(model)


def test_every_shard_of_the_index_must_be_there(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert "model-2.safetensors is missing" in refusal(model)
    (model / "model-2.safetensors").write_bytes(b"weights")
    check_model_directory(model)


def test_a_directory_without_tokenizer_or_config_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "must hold a tokenizer" in refusal(model)
    (model / "config.json").unlink()
    assert "must hold config.json" in refusal(model)


def test_an_adapter_is_not_taken_for_a_model(model: Path) -> None:
    (model / "config.json").write_text('{"peft_type": "LORA"}')
    assert "an adapter and not a model" in refusal(model)
