"""What a machine lacks is said before any work starts."""

from pathlib import Path

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.setup import check_accelerator, check_packages, check_setup

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
        check_setup(("hosted",), ("auto",), PINS)
    monkeypatch.setenv("TINKER_API_KEY", "tml-test")
    assert check_setup(("hosted",), ("auto",), PINS)["torch_cuda"] is None


def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_a_slow_run() -> None:
    import torch

    if torch.cuda.is_available():
        assert check_accelerator(("auto",), [{"name": "some GPU"}])
        return
    with pytest.raises(TinsmithError, match=r"has a GPU .some GPU. that torch cannot use"):
        check_accelerator(("auto",), [{"name": "some GPU"}])
    with pytest.raises(TinsmithError, match=r"backend\.device 'cuda' needs a GPU"):
        check_accelerator(("cuda",), [])
    assert check_accelerator(("cpu",), [{"name": "some GPU"}]) == torch.version.cuda
