"""When a stage saves a checkpoint, and which of them it keeps."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import tinker

from tinsmith.config import Checkpoints, Supervised
from tinsmith.progress import Kind, Progress, Saved
from tinsmith.saves import clear, is_save_due, retained


def saved(*accuracies: float | None, kind: Kind = "periodic") -> list[Saved]:
    """A checkpoint of every step, with what validation gave there."""
    return [
        Saved(f"step-{step}", kind, step, "run", f"state-{step}", f"sampler-{step}", "", accuracy)
        for step, accuracy in enumerate(accuracies, start=1)
    ]


def kept(found: tuple[Saved, ...]) -> list[int]:
    return [one.step for one in found if one.is_kept]


@pytest.mark.parametrize(("steps", "num_saves"), [(100, 10), (30, 10), (25, 8), (5, 5), (1, 1)])
def test_auto_saves_about_ten_times_a_stage(steps: int, num_saves: int):
    stage = Supervised(kind="supervised", steps=steps)
    assert sum(is_save_due(stage, step, 60) for step in range(steps)) == num_saves


def test_a_number_saves_after_that_many_steps():
    stage = Supervised(kind="supervised", steps=10, save_every=4)
    assert [step for step in range(10) if is_save_due(stage, step, 3600)] == [3, 7]


def test_auto_saves_after_a_quarter_of_an_hour_at_the_latest():
    stage = Supervised(kind="supervised", steps=1000)
    assert not is_save_due(stage, 7, 899)
    assert is_save_due(stage, 7, 900)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"keep_last": 0, "keep_best": False}, [5]),
        ({"keep_last": 1, "keep_best": False}, [5]),
        ({"keep_last": 3, "keep_best": False}, [3, 4, 5]),
        ({"keep_last": "all", "keep_best": False}, [1, 2, 3, 4, 5]),
        ({"keep_last": 1, "keep_best": True}, [2, 5]),
        ({"keep_last": 4, "keep_best": True}, [2, 3, 4, 5]),
    ],
)
def test_the_last_periodic_checkpoints_and_the_best_are_kept(settings: dict, steps: list[int]):
    found = retained(saved(0.1, 0.8, None, 0.8, 0.3), Checkpoints(**settings))
    assert kept(found) == steps
    assert [one.step for one in found if one.is_best] == [2] * settings["keep_best"]


def test_what_is_gone_is_never_the_best_nor_kept_again():
    few = retained(saved(0.9, 0.1, 0.2), Checkpoints(keep_last=1, keep_best=False))
    found = retained(few, Checkpoints(keep_last="all"))
    assert kept(found) == [3]
    assert [one.step for one in found if one.is_best] == [3]


def test_a_checkpoint_that_was_saved_as_the_best_goes_when_another_is_better():
    found = retained(saved(0.1, 0.2, 0.4, kind="best"), Checkpoints(keep_last=5))
    assert kept(found) == [3]


def test_the_final_checkpoint_stays_beside_the_best_and_the_last_periodic_one():
    last = replace(saved(0.9, 0.1, 0.4)[-1], kind="final")
    assert kept(retained([*saved(0.9, 0.1), last], Checkpoints())) == [1, 2, 3]


class Rest:
    """Stands in for the service: what each run has, or why that cannot be said."""

    def __init__(self, runs: dict[str, list[str] | Exception], sticky: str = "") -> None:
        self.runs, self.sticky = runs, sticky

    def list_checkpoints(self, run: str) -> Future[Any]:
        found = self.runs[run]
        if isinstance(found, Exception):
            return done(found)
        listed = [SimpleNamespace(tinker_path=path) for path in found]
        return done(SimpleNamespace(checkpoints=listed))

    def delete_checkpoint_from_tinker_path(self, path: str) -> Future[Any]:
        if path == self.sticky:
            return done(LOST)
        for paths in self.runs.values():
            if isinstance(paths, list) and path in paths:
                paths.remove(path)
        return done(None)


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


ASKED = httpx.Request("GET", "http://service")
LOST = tinker.APIConnectionError(request=ASKED)
UNKNOWN = tinker.NotFoundError("gone", response=httpx.Response(404, request=ASKED), body=None)


def test_what_no_record_names_is_removed_and_its_run_forgotten():
    rest = Rest({"a": ["state-1", "left"], "b": ["left-b"], "c": UNKNOWN})
    progress = Progress("", saved=tuple(saved(None)), runs=("a", "b", "c"))
    assert clear(progress, cast("Any", rest)) == ["a"]
    assert rest.runs == {"a": ["state-1"], "b": [], "c": UNKNOWN}


def test_a_run_that_could_not_be_listed_or_cleared_is_kept_for_another_try():
    rest = Rest({"a": LOST, "b": ["stuck"], "c": []}, sticky="stuck")
    progress = Progress("", runs=("a", "b", "c"))
    assert clear(progress, cast("Any", rest)) == ["a", "b"]
    rest = Rest({"a": ["left"], "b": ["stuck"]})
    assert clear(replace(progress, runs=("a", "b")), cast("Any", rest)) == []
    assert rest.runs == {"a": [], "b": []}
