"""Where a running stage stands, so that a killed one goes on instead of starting again.

The working folder holds the steps done so far and progress.json, which names the last checkpoint
from which the backend can go on, weights and optimizer. Steps after it are done again.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.files import sha256, write_json

AIMED_CHECKPOINTS = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """The step to go on with, the checkpoint before it, what the stage was started from, and the
    snapshots of the policy that it plays against: tinker:// paths by step."""

    next_step: int
    state: str
    fingerprint: str
    snapshots: dict[str, str] = field(default_factory=dict)


def fingerprint(settings: str, inputs: Iterable[Path]) -> str:
    """The hash of all that a stage's result is a function of."""
    digest = hashlib.sha256(settings.encode())
    for path in inputs:
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def read_progress(folder: Path, expected_fingerprint: str) -> Progress | None:
    """Where to go on; None, and an empty folder, where there is nothing to go on from."""
    file = folder / "progress.json"
    if file.exists():
        try:
            progress = Progress(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise TinsmithError(
                f"{file} must say where the stage stands: {error}; delete {folder} to start the"
                " stage again"
            ) from error
        if progress.fingerprint == expected_fingerprint:
            return progress
        logger.warning("the stage's inputs have changed: starting again in %s", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def write_progress(folder: Path, progress: Progress) -> None:
    """Record a checkpoint that the backend has finished writing."""
    write_json(folder / "progress.json", asdict(progress))


def is_save_due(options: config.Stage, step: int) -> bool:
    """After every `save_every` steps; `auto` aims at ten checkpoints a stage."""
    every = options.save_every
    if every == "auto":
        every = math.ceil(options.steps / AIMED_CHECKPOINTS)
    return (step + 1) % every == 0
