"""Where a running stage stands, so that a killed one goes on instead of starting again.

The working folder holds the steps done so far and progress.json, which names the checkpoints that
the stage has saved; the last is the one to go on from, weights and optimizer. Steps after it are
done again.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from tinsmith.config.checkpoints import Existing
from tinsmith.errors import TinsmithError
from tinsmith.files import sha256, write_json

Kind = Literal["periodic", "best", "final"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a stage: a line of checkpoints.jsonl.

    `kind` says why it was saved: because it was due, because it was the best so far, or because the
    stage was done. `step` counts the optimizer steps that made it; `state` and `sampler` are its
    tinker:// paths, which are gone where it was not kept.
    """

    name: str
    kind: Kind
    step: int
    model_id: str
    state: str
    sampler: str
    saved_at: str
    validation_accuracy: float | None
    is_best: bool = False
    is_kept: bool = True

    @property
    def paths(self) -> tuple[str, str]:
        return self.state, self.sampler


@dataclass(frozen=True, slots=True)
class Progress:
    """What a stage was started from, the checkpoints that it has saved, the snapshots of the policy
    that it plays against (tinker:// paths by step), and the ids of the runs that made them."""

    fingerprint: str
    saved: tuple[Saved, ...] = ()
    snapshots: dict[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()

    @property
    def next_step(self) -> int:
        """The step to go on with."""
        return self.saved[-1].step if self.saved else 0

    @property
    def state(self) -> str | None:
        """The checkpoint to go on from; None before the first."""
        return self.saved[-1].state if self.saved else None

    def paths(self) -> set[str]:
        """Every checkpoint that the stage still has."""
        kept = {path for one in self.saved if one.is_kept for path in one.paths}
        return kept | set(self.snapshots.values())


def fingerprint(settings: str, inputs: Iterable[Path]) -> str:
    """The hash of all that a stage's result is a function of."""
    digest = hashlib.sha256(settings.encode())
    for path in inputs:
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def begin(
    folder: Path, expected_fingerprint: str, existing: Existing, terminal: TextIO | None = None
) -> Progress:
    """Where to go on, or an empty folder and a progress without checkpoints.

    `existing` says what becomes of checkpoints that are there already; those of other inputs are
    never gone on from. `terminal` (standard input) is asked where it says so.
    """
    found = _read(folder)
    if found is None or not found.saved:
        return _start(folder, expected_fingerprint, found)
    is_same = found.fingerprint == expected_fingerprint
    stands = f"{folder} holds a stage that was cut off after step {found.next_step - 1}"
    if not is_same:
        stands += ", of inputs that have changed since"
    if existing == "ask":
        existing = _ask(stands, terminal or sys.stdin, can_resume=is_same)
    if existing == "raise":
        raise TinsmithError(
            f"{stands}, and checkpoints.existing is 'raise': set it to 'resume' to go on, or to"
            " 'delete' to start again"
        )
    if existing == "resume" and is_same:
        return found
    why = "checkpoints.existing is 'delete'" if is_same else "its inputs have changed"
    logger.warning("starting the stage in %s again: %s", folder, why)
    return _start(folder, expected_fingerprint, found)


def write_progress(folder: Path, progress: Progress) -> None:
    """Record checkpoints that the backend has finished writing."""
    write_json(folder / "progress.json", asdict(progress))


def _read(folder: Path) -> Progress | None:
    file = folder / "progress.json"
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        saved = tuple(Saved(**row) for row in fields["saved"])
        return Progress(**fields | {"saved": saved, "runs": tuple(fields["runs"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TinsmithError(
            f"{file} must say where the stage stands: {error}; delete {folder} to start the stage"
            " again"
        ) from error


def _start(folder: Path, fingerprint: str, before: Progress | None) -> Progress:
    """Forget the checkpoints but not the runs that made them, in which they can be found."""
    progress = Progress(fingerprint, runs=before.runs if before else ())
    write_progress(folder, progress)
    shutil.rmtree(folder / "steps", ignore_errors=True)
    return progress


def _ask(stands: str, terminal: TextIO, *, can_resume: bool) -> Existing:
    if not terminal.isatty():
        raise TinsmithError(
            f"{stands}, and checkpoints.existing is 'ask', but there is no terminal to ask on: set"
            " it to 'resume', 'delete' or 'raise'"
        )
    choices: dict[str, Existing] = {"d": "delete", "s": "raise"}
    words = "[d]elete and start again, [s]top"
    if can_resume:
        choices["r"], words = "resume", f"[r]esume, {words}"
    while True:
        print(f"{stands}. {words}? ", end="", file=sys.stderr, flush=True)
        line = terminal.readline()
        if not line:
            return "raise"
        if chosen := choices.get(line.strip().lower()[:1]):
            return chosen
