"""Checks of the machine before anything runs: installed packages, the GPU, the key, the disk."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from tinsmith.errors import TinsmithError
from tinsmith.metadata import accelerators

MIN_FREE_BYTES = 1 << 30


def check_setup(kinds: Sequence[str], devices: Sequence[str], pins: Path) -> dict[str, Any]:
    """What was found, for the record; what would only fail hours later is an error now."""
    other_versions = check_packages(pins.read_text(encoding="utf-8"))
    if "hosted" in kinds and not os.environ.get("TINKER_API_KEY"):
        raise TinsmithError(
            "TINKER_API_KEY must be set for backend.kind 'hosted', the hosted service; set it, or"
            " choose backend.kind: local (config.yaml: backend.kind, or TINKER_BACKEND)"
        )
    free_bytes = shutil.disk_usage(".").free
    if free_bytes < MIN_FREE_BYTES:
        raise TinsmithError(
            f"the disk must have at least {MIN_FREE_BYTES >> 30} GiB free for checkpoints, got"
            f" {free_bytes >> 20} MiB at {Path.cwd()}"
        )
    gpus = accelerators()
    torch_cuda = check_accelerator(devices, gpus) if "local" in kinds else None
    return {
        "other_versions": other_versions,
        "accelerators": gpus,
        "torch_cuda": torch_cuda,
        "free_bytes": free_bytes,
    }


def check_packages(pins: str) -> dict[str, dict[str, str]]:
    """Every pinned package must be there; one of another version than its pin is reported."""
    others: dict[str, dict[str, str]] = {}
    for name, pinned in re.findall(
        r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;#]+)\s*$", pins, re.MULTILINE
    ):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise TinsmithError(
                f"package {name} must be installed (envs/engine.txt pins {pinned}), but"
                f" {sys.executable} has none; `make run` installs all of them into .venv"
            ) from error
        if Version(installed).public != Version(pinned).public:
            others[name] = {"pinned": pinned, "installed": installed}
    return others


def check_accelerator(devices: Sequence[str], gpus: Sequence[dict[str, str]]) -> str | None:
    """The CUDA version of torch; a GPU that torch cannot use would mean a run hours too long."""
    asked = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"
    answer = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:]
        raise TinsmithError(f"torch must be importable by {sys.executable}, but: {' '.join(last)}")
    cuda, _, is_available = answer.stdout.strip().rpartition(" ")
    is_usable = is_available == "True"
    if "cuda" in devices and not is_usable:
        raise TinsmithError(
            f"backend.device 'cuda' needs a GPU that torch can use; torch here is built for"
            f" {cuda or 'the CPU only'} and the driver shows {len(gpus)} GPUs"
        )
    if gpus and "auto" in devices and not is_usable:
        raise TinsmithError(
            f"this machine has a GPU ({gpus[0]['name']}) that torch cannot use, because torch is"
            f" built for {cuda or 'the CPU only'}: install torch for this GPU, or choose the CPU"
            " with backend.device: cpu (config.yaml: backend.device)"
        )
    return cuda or None
