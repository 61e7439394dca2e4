"""The checkpoints that a running stage saves: when one is due, and which of them are kept."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import tinker

from tinsmith import config
from tinsmith.files import write_text
from tinsmith.progress import Kind, Progress, Saved, write_progress
from tinsmith.remote import rest_client

AIMED_CHECKPOINTS = 10
MAX_INTERVAL_S = 900
FINAL = "final"

logger = logging.getLogger(__name__)


def is_save_due(options: config.OwnStage, step: int, since_save_s: float) -> bool:
    """After every `save_every` steps; `auto` aims at ten checkpoints a stage, and saves after a
    quarter of an hour at the latest."""
    every = options.save_every
    if every == "auto":
        every = math.ceil(options.steps / AIMED_CHECKPOINTS)
        if since_save_s >= MAX_INTERVAL_S:
            return True
    return (step + 1) % every == 0


def retained(saved: Sequence[Saved], settings: config.Checkpoints) -> tuple[Saved, ...]:
    """The same checkpoints, each with whether it is the best and whether it is kept.

    Kept are the last, from which the stage goes on, the final one, the best where that is wanted,
    and the last periodic ones. The best is the first to reach the highest validation accuracy.
    """
    periodic = [one.name for one in saved if one.kind == "periodic"]
    if settings.keep_last != "all":
        periodic = periodic[max(0, len(periodic) - settings.keep_last) :]
    best = _best(saved) if settings.keep_best else None
    wanted = {*periodic, saved[-1].name, *([best.name] if best else [])}
    return tuple(
        replace(
            one,
            is_best=best is not None and one.name == best.name,
            is_kept=one.is_kept and (one.kind == "final" or one.name in wanted),
        )
        for one in saved
    )


def write_saved(path: Path, saved: Sequence[Saved]) -> None:
    """Write checkpoints.jsonl: every checkpoint that was saved, those no longer kept among them."""
    write_text(path, "".join(f"{json.dumps(asdict(one))}\n" for one in saved))


def clear(progress: Progress, rest: tinker.RestClient) -> list[str]:
    """Remove what earlier attempts at the stage saved and no record names, because they were killed
    before that, or were to be forgotten; which of their runs may still have something."""
    recorded = progress.paths()
    runs = []
    for run in progress.runs:
        try:
            found = {one.tinker_path for one in rest.list_checkpoints(run).result().checkpoints}
        except tinker.NotFoundError:
            continue
        except tinker.TinkerError as error:
            logger.warning("the checkpoints of %s could not be listed: %s", run, error)
            runs.append(run)  # for another try
            continue
        if _remove(found - recorded, rest) or found & recorded:
            runs.append(run)
    return runs


class Saves:
    """The checkpoints of a running stage. Each is recorded once the backend has written it; those
    that it puts out of use are removed after that."""

    def __init__(
        self,
        folder: Path,
        options: config.OwnStage,
        settings: config.Checkpoints,
        training_client: tinker.TrainingClient,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._options = options
        self._settings = settings
        self._training_client = training_client
        runs = (*clear(progress, rest_client()), training_client.model_id)
        self._progress = replace(progress, runs=runs)
        write_progress(folder, self._progress)
        self._saved_s = time.monotonic()

    @property
    def saved(self) -> tuple[Saved, ...]:
        """All that were saved, in order."""
        return self._progress.saved

    def kind_due(self, step: int, accuracy: float | None) -> Kind | None:
        """Why to save after `step`, at which validation gave `accuracy` (None: it was not due)."""
        if is_save_due(self._options, step, time.monotonic() - self._saved_s):
            return "periodic"
        if not self._settings.keep_best or accuracy is None:
            return None
        best = _best(self.saved)
        is_better = best is None or accuracy > _accuracy(best)
        return "best" if is_better else None

    def save(
        self, kind: Kind, step: int, accuracy: float | None, snapshots: Mapping[str, str]
    ) -> Saved:
        """Save state and sampler weights as they are after `step` optimizer steps."""
        name = FINAL if kind == "final" else f"step-{step}"
        state = self._training_client.save_state(name)
        sampler = self._training_client.save_weights_for_sampler(name)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        one = Saved(
            name, kind, step, self._training_client.model_id, state.result().path,
            sampler.result().path, now, accuracy,
        )  # fmt: skip
        before = self._progress
        saved = retained((*before.saved, one), self._settings)
        self._progress = replace(before, saved=saved, snapshots=dict(snapshots))
        write_progress(self._folder, self._progress)
        self._saved_s = time.monotonic()
        _remove(before.paths() - self._progress.paths(), rest_client())
        return saved[-1]

    def final(self, accuracy: float | None) -> Saved:
        """The checkpoint at the end of the stage, saved unless an earlier attempt did; snapshots of
        the policy to play against go with the stage."""
        if self.saved and self.saved[-1].kind == "final":
            return self.saved[-1]
        return self.save("final", self._options.steps, accuracy, {})


def _best(saved: Sequence[Saved]) -> Saved | None:
    validated = [one for one in saved if one.is_kept and one.validation_accuracy is not None]
    return max(validated, key=_accuracy, default=None)


def _accuracy(one: Saved) -> float:
    assert one.validation_accuracy is not None, "the best is one that was validated"
    return one.validation_accuracy


def _remove(paths: set[str], rest: tinker.RestClient) -> set[str]:
    """Those that could not be removed."""
    left = set()
    for path in sorted(paths):
        try:
            rest.delete_checkpoint_from_tinker_path(path).result()
        except tinker.TinkerError as error:
            logger.warning("the checkpoint %s could not be removed: %s", path, error)
            left.add(path)
    return left
