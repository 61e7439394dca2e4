"""The real W&B, TensorBoard and trackio, offline: every point once, training undisturbed."""

import json
import logging
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import require_trackers
from tinsmith.config import TensorBoard, Tracker, Trackio, Wandb
from tinsmith.errors import TinsmithError
from tinsmith.trackers import ENVIRONMENT, WORKER, TrackedStage, check_trackers, open_trackers

READER = Path(__file__).parents[1] / "read_trackers.py"
ALL: list[Tracker] = [
    Wandb(kind="wandb", mode="offline", project="sums"),
    TensorBoard(kind="tensorboard"),
    Trackio(kind="trackio", project="sums"),
]
SECRET = "a1" * 20


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackedStage]:
    require_trackers()
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    (tmp_path / "logs").mkdir()
    yield TrackedStage(
        run="seed=0",
        stage="grpo",
        settings={"stage": {"steps": 4}},
        folder=tmp_path / "results",
        work=tmp_path / "work",
        log=tmp_path / "logs" / "train.log",
    )
    assert workers() == []


def workers() -> list[psutil.Process]:
    """Those of this process, which may have other children."""
    return [p for p in psutil.Process().children() if str(WORKER) in p.cmdline()]


def point(step: int, attempt: int) -> dict[str, float]:
    return {"loss": step + attempt / 8, "reward_mean": 0.5 * step}


def read(folder: Path) -> dict[str, dict[str, list[list[float]]]]:
    command = [str(ENVIRONMENT.python), str(READER), str(folder), "sums"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def test_a_stage_that_was_killed_has_every_point_once_in_every_tracker(stage: TrackedStage):
    with suppress(KeyboardInterrupt), open_trackers(ALL, stage, []) as trackers:
        for step in range(3):  # the last two of them after the checkpoint
            trackers.log(step, point(step, 1))
        raise KeyboardInterrupt
    with open_trackers(ALL, stage, [point(0, 1)]) as trackers:
        for step in range(1, 4):
            trackers.log(step, point(step, 2))

    expected = [[0, 0.125], [1, 1.25], [2, 2.25], [3, 3.25]]
    for name, curves in read(stage.folder).items():
        assert curves["loss"] == expected, name
        assert curves["reward_mean"] == [[step, 0.5 * step] for step in range(4)], name
    first = json.loads((stage.work / "trackers.json").read_text())["id"]
    with open_trackers([TensorBoard(kind="tensorboard")], stage, []) as trackers:
        trackers.log(0, point(0, 3))
    assert read(stage.folder)["tensorboard"]["loss"] == [[0, 0.375]]
    assert json.loads((stage.work / "trackers.json").read_text())["id"] != first

    written = [path for path in stage.folder.parent.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in written)


def test_a_tracker_that_dies_is_a_warning_and_training_goes_on(
    stage: TrackedStage, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    with open_trackers([TensorBoard(kind="tensorboard")], stage, []) as trackers:
        [worker] = workers()
        worker.send_signal(signal.SIGTERM)  # a scheduler's, which it outlives
        trackers.log(0, point(0, 1))
        worker.kill()
        worker.wait()
        for step in range(1, 4):
            trackers.log(step, point(step, 1))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("the tracker tensorboard lacks points, which metrics.jsonl has: ")
    assert str(stage.log.with_name("train.tensorboard.log")) in said


def test_a_tracker_that_cannot_be_opened_stops_the_stage_and_says_why_without_its_key(
    stage: TrackedStage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "much-too-short")
    said = r"the tracker wandb could not be opened: .*API key.*train\.wandb\.log"
    trackers: list[Tracker] = [TensorBoard(kind="tensorboard"), Wandb(kind="wandb")]
    with pytest.raises(TinsmithError, match=said) as refused, open_trackers(trackers, stage, []):
        pytest.fail("it was opened")
    assert "much-too-short" not in str(refused.value)


@pytest.mark.parametrize(
    ("tracker", "environment", "message"),
    [
        (Wandb(kind="wandb"), {"WANDB_API_KEY": ""}, r"trackers\[0\] .*WANDB_API_KEY is not set"),
        (
            Trackio(kind="trackio"),
            {"TRACKIO_SPACE_ID": "me/space"},
            "TRACKIO_SPACE_ID must not be set.*trackio sync",
        ),
    ],
)
def test_what_a_tracker_lacks_is_said_before_any_work(
    tracker: Tracker, environment: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    require_trackers()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TinsmithError, match=message):
        check_trackers([tracker])
