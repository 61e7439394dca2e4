"""What an Inspect log is summed up as."""

from typing import Any

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.inspection.results import summarise


def log(*values: Any, **changes: Any) -> dict[str, Any]:
    samples = [{"scores": {"match": {"value": value}}} for value in values]
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


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
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
