"""Exports of a trained adapter, loaded by plain peft and transformers."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load_file, save_file

from tests.clients import prompt_logprobs, random_tokens
from tests.clients import train as train_on_noise
from tests.conftest import VLLM_PYTHON, require_vllm
from tests.in_process import KEY, serving
from tests.stages.test_stages import SUPERVISED, train
from tinsmith.checkpoints import fetch_weights
from tinsmith.config import Backend
from tinsmith.errors import TinsmithError
from tinsmith.export import (
    Precision,
    backend_precision,
    check_adapter,
    check_merged,
    compared_precision,
    write_adapter,
    write_merged,
)
from tinsmith.stages import StageContext

FLOAT32 = Precision("cpu", torch.float32)
VLLM_ANSWERS = Path(__file__).parents[1] / "vllm_answers.py"


class Exports(NamedTuple):
    model: Path
    adapter: Path
    merged: Path
    sequences: list[tuple[int, ...]]
    expected: list[list[float]]


@pytest.fixture(params=["qwen3", "llama"])
def exports(
    request: pytest.FixtureRequest,
    model_dirs: dict[str, Path],
    service: tinker.ServiceClient,
    make_context: Callable[..., StageContext],
    tmp_path: Path,
) -> Exports:
    """Both exports of a few steps on a model with tied embeddings (qwen3) and without (llama)."""
    model = model_dirs[request.param]
    client = service.create_lora_training_client(request.param, rank=4, seed=3).result()
    context = make_context(client)
    train(SUPERVISED, context)
    fetch_weights(client, "final", tmp_path / "weights")
    write_adapter(tmp_path / "weights", tmp_path / "adapter", str(model), "card")
    write_merged(model, tmp_path / "adapter", tmp_path / "merged", FLOAT32, "card")

    task = context.task
    sequences = [(*task.prompt(p), *task.reference(p)) for p in context.heldout]
    sampler = client.save_weights_and_get_sampling_client().result()
    prompts = [tinker.ModelInput.from_ints(list(tokens)) for tokens in sequences]
    futures = [sampler.compute_logprobs(prompt) for prompt in prompts]
    expected = [[p for p in future.result()[1:] if p is not None] for future in futures]
    return Exports(model, tmp_path / "adapter", tmp_path / "merged", sequences, expected)


def test_both_exports_give_the_backends_log_probabilities(exports: Exports):
    adapter = check_adapter(
        exports.model, exports.adapter, exports.sequences, exports.expected, FLOAT32
    )
    merged = check_merged(exports.merged, exports.sequences, exports.expected, FLOAT32)
    assert adapter.max_difference <= 1e-4
    assert merged.max_difference <= 1e-4


def test_an_export_is_compared_in_the_numbers_that_its_backend_computes_in():
    dtypes = {"local": torch.float32, "hosted": torch.bfloat16}
    for kind, dtype in dtypes.items():
        backend = Backend.model_validate({"kind": kind, "device": "cpu"})
        assert backend_precision(backend) == Precision("cpu", dtype)
        backend = Backend.model_validate({"kind": kind, "device": "cpu", "dtype": "float32"})
        assert backend_precision(backend) == FLOAT32


def test_an_export_of_a_remote_server_is_compared_in_the_dtype_that_it_states(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server in bfloat16, seen from a machine whose own `auto` is float32: there the same export
    is beyond the bound, by what the server's rounding comes to."""
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    tokens = [random_tokens(seed, 24) for seed in range(4)]
    with serving(llama_dir, tmp_path / "store", threads=1, dtype="bfloat16") as served:
        remote = {"kind": "remote", "url": served.base_url, "device": "cpu"}
        precision = compared_precision(Backend.model_validate(remote), "qwen3")
        with pytest.raises(
            TinsmithError, match=r"backend.dtype must be 'bfloat16'.* got 'float32'"
        ):
            compared_precision(Backend.model_validate(remote | {"dtype": "float32"}), "qwen3")
        monkeypatch.setenv("TINKER_BASE_URL", served.base_url)
        with served.client() as service:
            client = service.create_lora_training_client("qwen3", rank=4, seed=1).result()
            train_on_noise(client, 3)
            fetch_weights(client, "final", tmp_path / "weights")
            sampler = client.save_weights_and_get_sampling_client().result()
            expected = [prompt_logprobs(sampler, one) for one in tokens]
    write_adapter(tmp_path / "weights", tmp_path / "adapter", str(llama_dir), "card")
    export = (llama_dir, tmp_path / "adapter", tokens, expected)
    assert precision == Precision("cpu", torch.bfloat16)
    assert check_adapter(*export, precision).mean_difference <= 0.05
    with pytest.raises(TinsmithError, match=r"must agree with the backend: max_difference"):
        check_adapter(*export, FLOAT32)


def test_an_adapter_knows_its_base_and_both_have_a_card(exports: Exports):
    settings = json.loads((exports.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(exports.model)
    assert (exports.adapter / "README.md").read_text() == "card"
    assert (exports.merged / "README.md").read_text() == "card"


def test_a_merged_unembedding_leaves_the_embedding_alone(exports: Exports):
    merged = load_file(exports.merged / "model.safetensors")
    base = load_file(exports.model / "model.safetensors")
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert json.loads((exports.merged / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_export_that_differs_from_the_backend_is_an_error(exports: Exports):
    file = exports.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(TinsmithError, match=r"exported adapter must agree.*at most 0\.0001 nats"):
        check_adapter(exports.model, exports.adapter, exports.sequences, exports.expected, FLOAT32)


def test_an_exported_adapter_answers_alike_in_the_backend_peft_transformers_and_vllm(
    vllm_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of vLLM's likeliest completions each is at most 5e-5 nats from the backend, so that any two
    are at most 1e-4 apart."""
    require_vllm()
    prompts = [random_tokens(seed, 12) for seed in range(4)]
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    with serving(vllm_model_dir, tmp_path / "store", threads=1) as served:
        monkeypatch.setenv("TINKER_BASE_URL", served.base_url)
        monkeypatch.setenv("TINKER_API_KEY", KEY)
        with served.client() as service:
            client = service.create_lora_training_client(
                "qwen3", rank=4, seed=1, train_unembed=False
            ).result()
            train_on_noise(client, 3)
            fetch_weights(client, "final", tmp_path / "weights")
            write_adapter(tmp_path / "weights", adapter, str(vllm_model_dir), "card")
            answers = vllm_answers(vllm_model_dir, adapter, prompts)
            whole = [p + answer["tokens"] for p, answer in zip(prompts, answers, strict=True)]
            sampler = client.save_weights_and_get_sampling_client().result()
            expected = [prompt_logprobs(sampler, tokens) for tokens in whole]
            base = service.create_sampling_client(base_model="qwen3").result()
            before = [prompt_logprobs(base, tokens) for tokens in whole]
    write_merged(vllm_model_dir, adapter, merged, FLOAT32, "card")

    assert np.abs(np.subtract(before, expected)).max() > 0.1
    checks = (whole, expected, FLOAT32)
    assert check_adapter(vllm_model_dir, adapter, *checks).max_difference <= 5e-5
    assert check_merged(merged, *checks).max_difference <= 5e-5
    found = [answer["logprobs"] for answer in answers]
    assert np.abs(np.subtract(found, np.array(expected)[:, 11:])).max() <= 5e-5


def vllm_answers(model: Path, adapter: Path, prompts: list[list[int]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(VLLM_PYTHON), str(VLLM_ANSWERS), str(model), str(adapter)],
        input=json.dumps(prompts),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
