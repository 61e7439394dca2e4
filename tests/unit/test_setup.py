"""What a machine lacks is said before any work starts."""

from pathlib import Path

import pytest

from tinsmith.config import SetupSettings
from tinsmith.errors import TinsmithError
from tinsmith.setup import check_accelerator, check_packages, check_setup, without_effect

HOSTED = SetupSettings(kinds=("hosted",), devices=())
PINS = Path(__file__).parents[2] / "envs" / "engine.txt"


def test_a_missing_package_is_named_with_its_pin() -> None:
    with pytest.raises(TinsmithError, match=r"package no-such-package must be .*pins 1\.0"):
        check_packages("# pins\nno-such-package==1.0\n")


def test_a_version_other_than_the_pinned_is_reported() -> None:
    assert check_packages("pytest==0.1\n")["pytest"]["pinned"] == "0.1"


def test_a_platforms_build_counts_as_the_pinned_version() -> None:
    import importlib.metadata

    version = importlib.metadata.version("torch").split("+")[0]
    assert check_packages(f"torch=={version}\n") == {}


def test_the_hosted_service_needs_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(TinsmithError, match="TINKER_API_KEY must be set"):
        check_setup(HOSTED, 0, (), PINS)


def test_settings_that_the_hosted_service_does_not_get_are_named() -> None:
    told = {"backend.min_p": "0.5 (TINKER_LOCAL_MIN_P)", "backend.seed": "0 (default)"}
    told |= {"backend.dtype": "bfloat16 (config.yaml)", "model": "x (config.yaml)"}
    assert without_effect(HOSTED.model_copy(update={"settings": told})) == ["backend.min_p"]
    local = SetupSettings(kinds=("local",), devices=(), settings=told)
    assert without_effect(local) == []


def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_slow_run() -> None:
    import torch

    gpus = [{"name": "some GPU"}]
    if torch.cuda.is_available():
        assert check_accelerator(("auto",), 1, gpus)
        return
    with pytest.raises(TinsmithError, match=r"asks for 1, and torch can use none.*some GPU"):
        check_accelerator(("auto",), 1, gpus)
    with pytest.raises(TinsmithError, match=r"asks for 2, .* shows none"):
        check_accelerator(("cpu", "cuda"), 2, [])
    assert check_accelerator(("auto",), 0, gpus) == torch.version.cuda
    assert check_accelerator(("cpu",), 1, gpus) == torch.version.cuda
