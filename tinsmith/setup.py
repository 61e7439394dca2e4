"""Checks of the machine before anything runs: installed packages, the GPU, the key, the disk."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinsmith.config import SetupSettings
from tinsmith.environments import is_pinned, read_pins
from tinsmith.errors import TinsmithError
from tinsmith.metadata import accelerators
from tinsmith.remote import check_hosted, check_remote
from tinsmith.trackers import check_trackers

MIN_FREE_BYTES = 1 << 30
# What is said of the backend for jobs that use the hosted service too, their export's check above
# all.
ALSO_HOSTED = {f"backend.{key}" for key in ("kind", "device", "dtype", "threads", "gpus")}


def check_setup(
    settings: SetupSettings, num_gpus: int, urls: Sequence[str], pins: Path
) -> dict[str, Any]:
    """What was found, for the record; what would only fail hours later is an error now.

    `num_gpus` is what the jobs that run the model ask for, `urls` the servers that they use.
    """
    kinds = settings.kinds
    other_versions = check_packages(pins.read_text(encoding="utf-8"))
    if "hosted" in kinds:
        check_hosted(settings.hosted_models)
    check_trackers(settings.trackers)
    for url in urls:
        check_remote(url.rstrip("/"))
    free_bytes = shutil.disk_usage(".").free
    if free_bytes < MIN_FREE_BYTES:
        raise TinsmithError(
            f"the disk must have at least {MIN_FREE_BYTES >> 30} GiB free for checkpoints, got"
            f" {free_bytes >> 20} MiB at {Path.cwd()}"
        )
    gpus = accelerators()
    is_local = "local" in kinds
    torch_cuda = check_accelerator(settings.devices, num_gpus, gpus) if is_local else None
    return {
        "other_versions": other_versions,
        "accelerators": gpus,
        "is_gpu_idle": bool(is_local and gpus and num_gpus == 0),
        "torch_cuda": torch_cuda,
        "free_bytes": free_bytes,
    }


def without_effect(settings: SetupSettings) -> list[str]:
    """The settings of the local backend that somebody made, where the hosted service is used."""
    if settings.kinds != ("hosted",):
        return []
    told = settings.settings.items()
    made = [key for key, value in told if not value.endswith("(default)")]
    return [key for key in made if key.startswith("backend.") and key not in ALSO_HOSTED]


def check_packages(pins: str) -> dict[str, dict[str, str]]:
    """Every pinned package must be there; one of another version than its pin is reported."""
    others: dict[str, dict[str, str]] = {}
    for name, pinned in read_pins(pins).items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise TinsmithError(
                f"package {name} must be installed (envs/engine.txt pins {pinned}), but"
                f" {sys.executable} has none; `make run` installs all of them into .venv"
            ) from error
        if not is_pinned(installed, pinned):
            others[name] = {"pinned": pinned, "installed": installed}
    return others


def check_accelerator(
    devices: Sequence[str], num_gpus: int, gpus: Sequence[dict[str, str]]
) -> str | None:
    """The CUDA version of torch; a GPU that jobs ask for and torch cannot use would mean a run
    hours too long."""
    asked = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"
    answer = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:]
        raise TinsmithError(f"torch must be importable by {sys.executable}, but: {' '.join(last)}")
    cuda, _, is_available = answer.stdout.strip().rpartition(" ")
    if num_gpus and set(devices) != {"cpu"} and is_available != "True":
        names = ", ".join(gpu["name"] for gpu in gpus) or "none"
        raise TinsmithError(
            f"backend.gpus asks for {num_gpus}, and torch can use none: it is built for"
            f" {cuda or 'the CPU only'}, and the driver of {os.uname().nodename} shows {names};"
            " install torch for the GPU, or choose the CPU with backend.device: cpu and"
            " backend.gpus: 0"
        )
    return cuda or None
