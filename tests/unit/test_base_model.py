"""Which models load, and what is said of those that do not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import changed_model
from tinsmith.backend.model.base_model import BaseModel, choose_device, load_base_models
from tinsmith.backend.model.capacity import footprint
from tinsmith.backend.model.check import check_model
from tinsmith.errors import TinsmithError


def load(directory: Path) -> BaseModel:
    return load_base_models({"m": str(directory)}, "cpu", "float32")["m"]


def test_both_ways_of_running_a_model_agree_with_its_own(base: BaseModel):
    check_model(base)


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(TinsmithError, match=r"--model m=.*nothing: there is no such directory"):
        load(tmp_path / "nothing")


def test_a_directory_without_config_is_named(tmp_path: Path):
    with pytest.raises(TinsmithError, match=r"the directory has no config.json"):
        load(tmp_path)


def test_a_model_without_weights_is_named(qwen3_dir: Path, tmp_path: Path):
    shutil.copy(qwen3_dir / "config.json", tmp_path)
    with pytest.raises(TinsmithError, match=r"has no weights \(\*.safetensors\)"):
        load(tmp_path)


def test_a_model_without_tokenizer_is_named(qwen3_dir: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(qwen3_dir / name, tmp_path)
    with pytest.raises(TinsmithError, match="the directory has no tokenizer"):
        load(tmp_path)


def test_broken_weights_are_named(qwen3_dir: Path, tmp_path: Path):
    shutil.copytree(qwen3_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(TinsmithError, match=r"--model m=.* cannot be loaded"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("hidden_size", "wide", "hidden_size"),
        ("rope_parameters", {"rope_type": "nonsense", "rope_theta": 1e4}, "KeyError: 'nonsense'"),
        ("num_attention_heads", 0, "ZeroDivisionError"),
        ("intermediate_size", 24, "RuntimeError"),
        ("dtype", "float7", "float7"),
    ],
)
def test_a_config_that_transformers_cannot_use_is_named(
    key: str, value: object, named: str, qwen3_dir: Path, tmp_path: Path
):
    model = changed_model(qwen3_dir, tmp_path / "model", **{key: value})
    refusal = rf"--model m=.*/model cannot be loaded: .*{named}"
    with pytest.raises(TinsmithError, match=refusal):
        load(model)
    if key != "intermediate_size":  # which is found by the weights
        with pytest.raises(TinsmithError, match=refusal):
            footprint("m", str(model), torch.float32, "cpu")


def test_weights_that_lack_a_tensor_are_refused_not_made_up(qwen3_dir: Path, tmp_path: Path):
    shutil.copytree(qwen3_dir, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TinsmithError, match=r"lack 1 tensors .* model.layers.1.mlp.up_proj.weight"):
        load(tmp_path / "model")


def test_layers_that_the_sampler_cannot_cache_are_refused(qwen3_dir: Path, tmp_path: Path):
    kinds = ["full_attention", "linear_attention"]
    model = changed_model(qwen3_dir, tmp_path / "model", layer_types=kinds)
    with pytest.raises(TinsmithError, match="linear_attention are not supported"):
        load(model)


def test_a_gpu_that_is_not_there_is_said():

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_device("auto").type == "cpu"
    with pytest.raises(TinsmithError, match="sees no CUDA device on this machine"):
        choose_device("cuda:0")


@pytest.mark.parametrize(("kind", "context"), [("longrope", 31), ("default", None)])
def test_a_model_is_served_as_far_as_its_rotation_is_the_same_in_every_batch(
    kind: str, context: int | None, llama_dir: Path, tmp_path: Path
):
    config = json.loads((llama_dir / "config.json").read_text())
    factors = {"short_factor": 1.0, "long_factor": 4.0}
    rope: dict[str, object] = {
        name: [value] * (config["head_dim"] // 2) for name, value in factors.items()
    }
    rope |= {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    base = load(changed_model(llama_dir, tmp_path / "model", rope_parameters=rope))

    assert base.context_length == (context or config["max_position_embeddings"])
    alone, beside = (torch.arange(1, 1 + length)[None] for length in (32, 33))
    with torch.no_grad():
        difference = base.module(alone).logits - base.module(beside).logits[:, :32]
    assert (difference.abs().max() > 1e-2) == (kind == "longrope")
