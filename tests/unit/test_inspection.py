"""What an Inspect log is summed up as."""

from typing import Any

import numpy as np
import pytest

from tinsmith.errors import TinsmithError
from tinsmith.inspection.results import summarise


def log(*values: Any, **changes: Any) -> dict[str, Any]:
    """One epoch; a value of None is what no scorer scored."""
    samples = [
        {"id": place, "epoch": 1, "scores": None if value is None else {"match": {"value": value}}}
        for place, value in enumerate(values)
    ]
    return {"status": "success", "eval": {"task": "capitals"}, "samples": samples} | changes


def test_right_and_wrong_answers_have_wilsons_interval() -> None:
    """8 of 10: Wilson's 95 % interval as statsmodels' proportion_confint gives it."""
    score = summarise(log(*"CCCCCCCCI", False), seed=0)["match"]
    assert (score["mean"], score["num_samples"], score["interval"]) == (0.8, 10, "wilson")
    assert (score["low"], score["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_partly_right_answers_have_a_bootstrap_interval() -> None:
    score = summarise(log("C", "P", "N", 0.25), seed=0)["match"]
    assert score["mean"] == pytest.approx((1 + 0.5 + 0 + 0.25) / 4)
    assert 0 <= score["low"] < score["mean"] < score["high"] <= 1
    assert score["interval"] == "bootstrap over samples"


def test_epochs_of_a_sample_count_as_one_sample() -> None:
    """Asked five times, 10 samples with the same answer each time tell no more than asked once."""
    once = log(*"CCCCCCCCII")
    epochs = range(1, 6)
    samples = [{**sample, "epoch": epoch} for epoch in epochs for sample in once["samples"]]
    found = summarise(log(samples=samples), seed=0)["match"]
    assert found == {**summarise(once, seed=0)["match"], "epochs": 5}
    assert found["num_samples"] == 10


def test_the_interval_of_samples_with_epochs_is_that_of_their_means() -> None:
    """Its half width is 1.96 standard errors of the mean over 400 samples' means."""
    rng = np.random.default_rng(0)
    chances = rng.random(400)
    drawn = rng.random((4, 400)) < chances
    samples = [
        {"id": place, "epoch": epoch + 1, "scores": {"match": {"value": bool(value)}}}
        for epoch, values in enumerate(drawn)
        for place, value in enumerate(values)
    ]
    found = summarise(log(samples=samples), seed=0)["match"]
    half_width = 1.96 * drawn.mean(0).std() / 20
    assert found["mean"] == pytest.approx(drawn.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half_width, rel=0.05)


def test_an_answer_that_no_scorer_scored_is_counted_and_left_out() -> None:
    found = summarise(log("C", None, float("nan"), "I"), seed=0)["match"]
    assert (found["mean"], found["num_samples"], found["num_unscored"]) == (0.5, 2, 2)


def test_an_error_that_the_task_scores_is_a_score() -> None:
    failed = log(*"CI")
    failed["samples"][1]["error"] = {"message": "no answer"}
    failed["eval"]["config"] = {"score_on_error": True}
    assert summarise(failed, seed=0)["match"]["mean"] == 0.5


FAILED = {"id": "a", "epoch": 2, "error": {"message": "connection lost"}}
SCORED = {"match": {"value": "C"}}


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (log(None), "capitals must score its samples"),
        (log(float("nan")), "the scorer match must give a score to at least one sample"),
        (log(float("inf")), "the scorer match must give numbers, .* got inf"),
        (log(samples=[FAILED | {"scores": None}]), "sample 'a', epoch 2, it failed: connection"),
        (log(samples=[FAILED | {"scores": SCORED}]), "sample 'a', epoch 2, it failed: connection"),
        (log(status="error", error={"message": "no such file"}), "capitals failed: no such file"),
        (log(status="cancelled"), "capitals failed: it was cut off"),
        (log(), "capitals must score its samples"),
        (log("maybe"), "the scorer match must give numbers, true and false, .* got 'maybe'"),
        (log({"a": 1}), "the scorer match must give numbers"),
    ],
)
def test_what_is_no_score_is_refused(found: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TinsmithError, match=complaint):
        summarise(found, seed=0)
