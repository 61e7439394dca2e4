"""run_metadata.json: what a job was told, where it ran, digests of what it read and wrote."""

import hashlib
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from tinsmith.container import COMMIT_VARIABLE, current_image
from tinsmith.files import sha256
from tinsmith.gpus import ask_driver
from tinsmith.processor import processor

_RECORDED = re.compile(
    r"^(TINKER|TINSMITH|HF|HUGGINGFACE|TRANSFORMERS|TORCH|PYTORCH|CUDA|NCCL|VLLM|OMP|MKL|OPENBLAS"
    r"|SLURM|APPTAINER|SNAKEMAKE)_|^(CUBLAS_WORKSPACE_CONFIG|PYTHONHASHSEED|NO_PROXY|WANDB_MODE|WANDB_API_KEY|TRACKIO_DIR)$"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_DIRTY = "-dirty"
_SNAKEMAKE_MARK = ".snakemake_timestamp"


@dataclass(frozen=True, slots=True)
class KeptServer:
    """The local server that a job was served by, if it was not the job's own: how many jobs it had
    served before, and the most memory that it had while it served this one."""

    started: str
    num_jobs_before: int
    peak_memory_bytes: int


@dataclass(slots=True)
class JobRecord:
    """What a running job finds out about itself for its run_metadata.json: the server that it
    shared, and the seconds that it spent on getting ready."""

    server: KeptServer | None = None
    set_up_s: float = 0.0


def describe_run(
    *,
    rule: str,
    settings: Any,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    seeds: Mapping[str, int],
    started: datetime,
    found: JobRecord,
) -> dict[str, Any]:
    """The whole record of a job that has just ended well."""
    ended = datetime.now(UTC)
    memory = peak_memory_bytes()
    if found.server is not None:
        memory["kept_server"] = found.server.peak_memory_bytes
    return {
        "rule": rule,
        "command": shlex.join(sys.orig_argv),
        "settings": settings,
        "seeds": dict(seeds),
        "started": started.isoformat(),
        "ended": ended.isoformat(),
        "duration_s": (ended - started).total_seconds(),
        "set_up_s": found.set_up_s,
        "peak_memory_bytes": memory,
        "kept_server": asdict(found.server) if found.server else None,
        "inputs": {name: describe_file(path) for name, path in inputs.items()},
        "outputs": {name: describe_file(path) for name, path in outputs.items()},
        "environment": recorded_environment(os.environ),
        "packages": package_versions(),
        "git": git_state(),
        "container": current_image(os.environ),
        "machine": machine(),
        "accelerators": accelerators(),
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Path, size and SHA-256 of a file or a tree; Snakemake's own mark in a tree does not count."""
    if path.is_file():
        return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": sha256(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != _SNAKEMAKE_MARK)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    size_bytes = sum(file.stat().st_size for file in files)
    return {
        "path": str(path),
        "size_bytes": size_bytes,
        "num_files": len(files),
        "sha256": digest.hexdigest(),
    }


def recorded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a result; those that may hold a secret are masked."""
    return {
        name: "***" if _SECRET.search(name) else value
        for name, value in sorted(environment.items())
        if _RECORDED.search(name)
    }


def package_versions() -> dict[str, str]:
    """Every installed distribution, so that the environment can be made again."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def git_state() -> dict[str, Any] | None:
    """The commit, and whether a tracked file differed from it; None outside a git checkout."""
    said = os.environ.get(COMMIT_VARIABLE) or git_commit()
    if said is None:
        return None
    return {"commit": said.removesuffix(_DIRTY), "is_dirty": said.endswith(_DIRTY)}


def git_commit(*, besides: str | None = None) -> str | None:
    """The commit that is checked out, with "-dirty" where a tracked file differs from it, `besides`
    those of one folder of the repository."""
    commit = _output_of("git", "rev-parse", "HEAD")
    if commit is None:
        return None
    left_out = [":/", f":(top,exclude){besides}"] if besides else []
    changes = _output_of("git", "status", "--porcelain", "--untracked-files=no", "--", *left_out)
    return commit + (_DIRTY if changes else "")


def machine() -> dict[str, Any]:
    """The computer: its name, system, processor and memory."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor(),
        "num_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def accelerators() -> list[dict[str, str]]:
    """The GPUs that the NVIDIA driver shows."""
    return ask_driver("name", "memory.total", "driver_version", "uuid")


def peak_memory_bytes() -> dict[str, int]:
    """The most resident memory of this process, and of the largest child that it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "largest_child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit,
    }


def _output_of(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
