"""The program that compares a sampler's log-probabilities with teacher-forced ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from scripts.check_local_sampling_logprobs import Difference, main, sampled_logprob
from tinsmith.serving import Endpoint


def check(endpoint: Endpoint, *arguments: str) -> int:
    where = ("--base-url", endpoint.base_url, "--api-key", endpoint.api_key)
    return main([*where, "--base-model=llama", "--max-tokens=12", *arguments])


@pytest.fixture(scope="module")
def changed_dir(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model but for one norm of its first layer."""
    folder = tmp_path_factory.mktemp("changed") / "llama"
    shutil.copytree(llama_dir, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_sound_backend_agrees_with_its_trainer_and_with_transformers(
    endpoint: Endpoint, llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(endpoint, f"--model={llama_dir}", "--threshold=1e-5") == 0
    said = capsys.readouterr().out
    for name in ("trainer", "sampler, as a prompt", "transformers", "verdict: they agree"):
        assert name in said


def test_a_running_backend_is_checked_without_a_directory(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(endpoint, "--threshold=1e-5") == 0
    assert "transformers" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--temperature=0.7", "--top-k=20", "--top-p=0.9"), ()])
def test_the_distribution_that_was_sampled_from_is_the_one_compared(
    endpoint: Endpoint, llama_dir: Path, options: tuple[str, ...]
) -> None:
    assert check(endpoint, f"--model={llama_dir}", "--threshold=1e-5", *options) == 0


def test_a_model_that_differs_fails(
    endpoint: Endpoint, changed_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(endpoint, f"--model={changed_dir}") == 1
    assert "THEY DIFFER" in capsys.readouterr().out


def test_truncation_without_a_directory_is_refused(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(endpoint, "--top-p=0.9") == 2
    assert "need --model" in capsys.readouterr().err


def test_nothing_to_check_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "give --model DIR, or --base-url and --base-model" in capsys.readouterr().err


def test_temperature_and_truncation_by_hand() -> None:
    logits_V = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    assert np.exp(sampled_logprob(logits_V, 1, 1.0, -1, 1.0)) == pytest.approx(0.25)
    assert np.exp(sampled_logprob(logits_V, 1, 1.0, 2, 1.0)) == pytest.approx(1 / 3)
    assert np.exp(sampled_logprob(logits_V, 0, 0.5, 2, 1.0)) == pytest.approx(0.8)
    assert np.exp(sampled_logprob(logits_V, 0, 1.0, -1, 0.6)) == pytest.approx(2 / 3)
    assert sampled_logprob(logits_V, 3, 1.0, 2, 1.0) == -np.inf
    assert np.exp(sampled_logprob(logits_V, 3, 0.0, 1, 0.1)) == pytest.approx(0.125)


def test_a_token_that_the_other_would_not_sample_counts_as_outside() -> None:
    found = Difference.between(np.array([-1.0, -2.0]), np.array([-1.5, -np.inf]))
    assert (found.num_tokens, found.num_outside) == (2, 1)
    assert (found.largest, found.mean, found.kl_nats) == (0.5, 0.5, np.inf)
