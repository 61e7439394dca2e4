"""Where a running stage stands, so that a killed one goes on instead of starting again.

The working folder holds the steps done so far and progress.json, which names the last checkpoint
from which the backend can go on, weights and optimizer. Steps after it are done again.
"""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tinker

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.files import sha256, write_json

AIMED_CHECKPOINTS = 10
MAX_INTERVAL_S = 900

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


def is_save_due(options: config.Stage, step: int, since_save_s: float) -> bool:
    """After every `save_every` steps; `auto` aims at ten checkpoints a stage, and saves after a
    quarter of an hour at the latest."""
    every = options.save_every
    if every == "auto":
        every = math.ceil(options.steps / AIMED_CHECKPOINTS)
        if since_save_s >= MAX_INTERVAL_S:
            return True
    return (step + 1) % every == 0


class Saves:
    """The working checkpoints of a running stage, of which the last is kept."""

    def __init__(
        self,
        folder: Path,
        options: config.Stage,
        training_client: tinker.TrainingClient,
        fingerprint: str,
        last: Progress | None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._training_client = training_client
        self._fingerprint = fingerprint
        self._last = last
        self._saved_s = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`."""
        return is_save_due(self._options, step, time.monotonic() - self._saved_s)

    def save(self, next_step: int, snapshots: dict[str, str]) -> None:
        """Record a checkpoint once the backend has written it; then the one before is of no use."""
        state = self._training_client.save_state(f"step-{next_step}").result().path
        progress = Progress(next_step, state, self._fingerprint, dict(snapshots))
        write_progress(self._folder, progress)
        before, self._last = self._last, progress
        self._saved_s = time.monotonic()
        if before is not None and before.state != state:
            self._remove(before.state)

    def _remove(self, state: str) -> None:
        try:
            tinker.RestClient().delete_checkpoint_from_tinker_path(state).result()
        except tinker.TinkerError as error:
            logger.warning("the working checkpoint %s could not be removed: %s", state, error)
