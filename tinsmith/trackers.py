"""Weights & Biases, TensorBoard and trackio: a stage's metrics, shown there while it trains.

Each tracker works in a process of its own, in an environment of its own, so that neither its
packages nor its network can disturb training. A tracker that cannot be opened stops a stage before
its first step; one that fails later is a warning, for metrics.jsonl has everything.
"""

import json
import logging
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.config import Tracker
from tinsmith.environments import Environment
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json

ENVIRONMENT = Environment("trackers", Path(__file__).resolve().parents[1])
WORKER = Path(__file__).resolve().parent / "tracker_worker"
START_S = 180.0
# Somewhat more than a worker takes at most to send what is left.
END_S = 75.0
TRACKIO_SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
# No business of a tracker's: its packages are its own, and so is its key.
HIDDEN = ("PYTHONPATH", "TINKER_API_KEY", "HF_TOKEN")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """What a tracker is told: whose metrics they are, and where files about them belong.

    `folder` is the stage's folder of results, `work` the folder that its attempts share, `log` the
    path of the stage's log, beside which the trackers write theirs.
    """

    run: str
    stage: str
    settings: Mapping[str, Any]
    folder: Path
    work: Path
    log: Path


def check_trackers(trackers: Sequence[Tracker], environment: Environment = ENVIRONMENT) -> None:
    """Refuse what could only fail once a stage starts."""
    if trackers:
        environment.find_packages()
    for index, tracker in enumerate(trackers):
        where = f"trackers[{index}]"
        is_online = tracker.kind == "wandb" and tracker.mode == "online"
        if is_online and not os.environ.get("WANDB_API_KEY"):
            raise TinsmithError(
                f"{where} sends to Weights & Biases, but WANDB_API_KEY is not set; export the key,"
                " or set mode: offline"
            )
        elsewhere = [name for name in TRACKIO_SERVERS if os.environ.get(name)]
        if tracker.kind == "trackio" and elsewhere:
            raise TinsmithError(
                f"{where}: {elsewhere[0]} must not be set with kind trackio, whose record is kept"
                " on this machine; unset it, and send the record there by `trackio sync`"
            )


@contextmanager
def open_trackers(
    trackers: Sequence[Tracker], stage: TrackedStage, done: Sequence[Mapping[str, float]]
) -> Iterator["Trackers"]:
    """Start every tracker and give it the metrics of the steps that are `done` already; what the
    block logs follows. A stage that is left by an exception counts as failed there."""
    check_trackers(trackers)
    shared_id = _shared_id(stage.work, starts_anew=not done) if trackers else ""
    opened = Trackers([_Worker(tracker, stage, shared_id) for tracker in trackers])
    try:
        opened.wait()
        for step, metrics in enumerate(done):
            opened.log(step, metrics)
        yield opened
        opened.say({"done": True})
    finally:
        opened.close()


class Trackers:
    """The open trackers of a stage."""

    def __init__(self, workers: Sequence["_Worker"]) -> None:
        self._workers = workers

    def wait(self) -> None:
        """Return once every tracker is open; they start side by side."""
        for worker in self._workers:
            worker.wait()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        self.say({"step": step, "metrics": dict(metrics)})

    def say(self, message: Mapping[str, Any]) -> None:
        for worker in self._workers:
            worker.say(message)

    def close(self) -> None:
        """End every tracker, after what it was told."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.close()


class _Worker:
    """A child process that runs `tracker_worker`."""

    def __init__(self, tracker: Tracker, stage: TrackedStage, shared_id: str) -> None:
        self._name = tracker.kind
        self._log = stage.log.with_suffix(f".{tracker.kind}.log")
        stage.folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as errors:
            self._child = subprocess.Popen(
                [str(ENVIRONMENT.python), str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={name: value for name, value in os.environ.items() if name not in HIDDEN},
                start_new_session=True,  # Ctrl-C is for the stage, which still has to say it
            )
        self._is_lost = False
        self.say(
            {
                **tracker.model_dump(mode="json"),
                "run": stage.run,
                "stage": stage.stage,
                "id": shared_id,
                "settings": dict(stage.settings),
                "folder": str(stage.folder),
                "lock": str(stage.work / f"{tracker.kind}.lock"),
            }
        )

    def wait(self) -> None:
        """Return once the tracker is open."""
        assert self._child.stdout is not None
        limit = threading.Timer(START_S, self._child.kill)
        limit.start()
        answer = self._child.stdout.readline()
        limit.cancel()
        if answer != "ready\n":
            self._is_lost = True  # which is said here
            raise TinsmithError(
                f"the tracker {self._name} could not be opened: {self._last_line()} (log:"
                f" {self._log}); mend that, or remove it from trackers in the config: nothing is"
                " trained anew for it"
            )

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a message; a worker that is gone is told nothing, and that is said once."""
        assert self._child.stdin is not None
        if self._is_lost:
            return
        try:
            self._child.stdin.write(f"{json.dumps(message, ensure_ascii=False)}\n")
            self._child.stdin.flush()
        except OSError:
            self._lose(self._last_line())

    def hang_up(self) -> None:
        """Close its standard input, after which it ends by itself."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
        except OSError:  # it is gone, and took the rest of the pipe with it
            self._lose(self._last_line())

    def close(self) -> None:
        """Wait for its end."""
        assert self._child.stdout is not None
        try:
            if self._child.wait(END_S):
                self._lose(self._last_line())
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            self._lose(f"it did not end within {END_S:.0f} s")
        self._child.stdout.close()

    def _lose(self, reason: str) -> None:
        if not self._is_lost:
            logger.warning(
                "the tracker %s lacks points, which metrics.jsonl has: %s (log: %s)",
                self._name, reason, self._log,
            )  # fmt: skip
        self._is_lost = True

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


def _shared_id(work: Path, *, starts_anew: bool) -> str:
    """What an attempt at a stage is known by, and those that go on from it."""
    file = work / "trackers.json"
    if starts_anew or not file.is_file():
        write_json(file, {"id": secrets.token_hex(4)})
    return json.loads(file.read_text(encoding="utf-8"))["id"]
