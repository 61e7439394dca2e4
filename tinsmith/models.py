"""Base models: made on the spot, fetched from the hub, or checked where they lie."""

import json
import logging
from pathlib import Path

from tinsmith.config import HubModel, ModelSettings, TinyModel
from tinsmith.errors import TinsmithError
from tinsmith.hub import download_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
logger = logging.getLogger(__name__)


def prepare_model(settings: ModelSettings, directory: Path, download: Path) -> None:
    """Put a complete model directory at `directory`; `download` keeps what a broken fetch has."""
    model = settings.model
    if isinstance(model, TinyModel):
        from tinsmith.tiny.model import make_tiny_model

        assert settings.digits is not None
        make_tiny_model(directory, model, settings.digits, settings.operations)
    elif isinstance(model, HubModel):
        download_model(model, directory, download)
    check_model_directory(directory)
    logger.info("%s: %.1f MB", directory, _size_bytes(directory) / 1e6)


def check_model_directory(directory: Path) -> None:
    """Refuse, before anything loads it, what transformers could not load as a causal model."""
    if not directory.is_dir():
        raise TinsmithError(f"model directory {directory} must exist (config: model.path)")
    config = _json_object(directory / "config.json", "the model's architecture")
    if "model_type" not in config:
        raise TinsmithError(
            f"{directory / 'config.json'} must name a model_type; is {directory} an adapter"
            " and not a model? (config: model.path)"
        )
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise TinsmithError(
            f"model directory {directory} must hold a tokenizer, one of"
            f" {', '.join(_TOKENIZER_FILES)}, but has none (config: model.path)"
        )
    _check_weights(directory)


def _check_weights(directory: Path) -> None:
    if (directory / _INDEX).is_file():
        shards = set(
            _json_object(directory / _INDEX, "the weights' index").get("weight_map", {}).values()
        )
    else:
        shards = {_WEIGHTS}
    missing = sorted(name for name in shards if not _is_filled(directory / name))
    if not shards or missing:
        pickled = any(directory.glob("pytorch_model*.bin"))
        hint = "; pytorch_model*.bin must be saved again as safetensors" if pickled else ""
        raise TinsmithError(
            f"model directory {directory} must hold its weights as safetensors, but"
            f" {', '.join(missing[:3]) or 'every shard'} is missing or empty{hint}"
            " (config: model.path)"
        )


def _json_object(path: Path, what: str) -> dict:
    if not path.is_file():
        raise TinsmithError(
            f"model directory {path.parent} must hold {path.name}, {what}, but has none"
            " (config: model.path)"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TinsmithError(f"{path}, {what}, must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise TinsmithError(f"{path}, {what}, must be a JSON object, got {value!r}")
    return value


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
