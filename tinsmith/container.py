"""Apptainer images: how one is built, and what a job that runs in one must see of the machine."""

import json
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError
from tinsmith.files import sha256, write_text

logger = logging.getLogger(__name__)

COMMIT_LABEL = "org.opencontainers.image.revision"
COMMIT_VARIABLE = "TINSMITH_GIT_COMMIT"
NVIDIA_BASE = (
    "the address of NVIDIA's PyTorch image, docker://..., as its catalogue (NGC) shows it, such as"
    " that of nvidia/pytorch:25.12-py3"
)
DIGESTS = Path("work/images")
_AGENTS = ("docker", "oras", "library")  # what Apptainer fetches a base image with
_LABELS = Path("/.singularity.d/labels.json")
_NVIDIA_DEVICE = Path("/dev/nvidiactl")


def build_image(
    definition: Path, image: Path, commit: str, base: str | None, options: Sequence[str]
) -> None:
    """Build `image` from `definition`, whole or not at all."""
    apptainer = _apptainer(f"to build {image}")
    if base is None and definition.stem == "engine-cuda":
        raise TinsmithError(f"container.base is required for {image}: {NVIDIA_BASE}")
    draft = image.with_name(f".{image.name}.draft")
    arguments = {"commit": commit, **_base_arguments(base)}
    command = [apptainer, "build", "--force", *options]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += [str(draft), str(definition)]
    logger.info("%s", shlex.join(command))
    said = []
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as build:
            assert build.stdout is not None
            for line in build.stdout:
                said.append(line.rstrip())
                logger.info("%s", said[-1])
        if build.returncode != 0:
            raise TinsmithError(
                f"apptainer could not build {image} from {definition}; its last words:"
                f" {' '.join(line for line in said[-3:] if line)}"
            )
        os.replace(draft, image)
    finally:
        draft.unlink(missing_ok=True)


def apptainer_arguments(
    given: str, *, image: Path, outside: Iterable[Path], commit: str | None, has_gpu: bool
) -> str:
    """The arguments of `apptainer exec` that were given, and those that a job of ours needs.

    The working directory is bound by Snakemake; what lies `outside` of it is bound here, under
    its own name. Nothing is added twice: a job on a cluster passes through here once more.
    """
    here = Path.cwd().resolve()
    _apptainer("for container: true")
    bound = sorted({_existing(path.resolve()) for path in [image, *outside]})
    ours = [f"--bind {shlex.quote(str(p))}" for p in bound if not p.is_relative_to(here)]
    if commit is not None:
        ours.append(f"--env {COMMIT_VARIABLE}={commit}")
    if has_gpu:
        ours.append("--nv")
    return " ".join([given, *(one for one in ours if f" {one} " not in f" {given} ")]).strip()


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA driver, which `--nv` makes visible inside."""
    return _NVIDIA_DEVICE.exists()


def current_image(environment: Mapping[str, str], labels: Path = _LABELS) -> dict[str, Any] | None:
    """The image that this process runs in, with its digest; None outside of any.

    The digest is None where the image itself cannot be seen from inside.
    """
    name = environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER")
    if not name:
        return None
    image = Path(name)
    label = json.loads(labels.read_text()).get(COMMIT_LABEL) if labels.exists() else None
    digest = _digest(image) if image.is_file() else None
    return {"path": name, "sha256": digest, "commit": label}


def _digest(image: Path) -> str:
    """SHA-256 of an image, remembered by its name, size and time of change for the jobs to come.

    In the working directory, because a job sees nothing else beside an image of another folder, or
    may not write there.
    """
    seen = image.stat()
    note = DIGESTS / f"{image.name}-{seen.st_size}-{seen.st_mtime_ns}.sha256"
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    digest = sha256(image)
    now = image.stat()
    if (now.st_size, now.st_mtime_ns) == (seen.st_size, seen.st_mtime_ns):
        write_text(note, f"{digest}\n")
    return digest


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists, in which a job will make it."""
    return path if path.exists() else _existing(path.parent)


def _base_arguments(base: str | None) -> dict[str, str]:
    """What a definition calls its base: how it is fetched, and from where."""
    if base is None:
        return {}
    agent, is_remote, name = base.partition("://")
    if is_remote and agent in _AGENTS:
        return {"bootstrap": agent, "base": name}
    if not is_remote and Path(base).exists():
        return {"bootstrap": "localimage", "base": base}
    raise TinsmithError(
        "container.base must be an image file or folder that exists, or begin with"
        f" {', '.join(f'{agent}://' for agent in _AGENTS)}, got {base!r}"
    )


def _apptainer(purpose: str) -> str:
    found = shutil.which("apptainer")
    if found is None:
        raise TinsmithError(
            f"apptainer must be installed {purpose}; docs/containers.md says where to get it"
        )
    return found
