"""Evaluation: accuracy, pass@k and paired differences from rows of samples."""

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.evaluation import Row, paired_difference, summarise


def rows(right: dict[str, list[bool]]) -> list[Row]:
    return [
        {
            "problem_id": problem,
            "sample": index,
            "is_right": is_right,
            "reward": float(is_right),
            "is_finished": True,
            "tokens": [1, 2],
        }
        for problem, outcomes in right.items()
        for index, is_right in enumerate(outcomes)
    ]


MIXED = {"a": [True, False], "b": [True, True], "c": [False, False]}


def test_accuracy_and_pass_at_k_by_hand():
    summary = summarise(rows(MIXED), (1, 2), seed=0)
    assert summary["accuracy"] == pytest.approx(0.5)
    assert summary["pass_at_k"] == pytest.approx({"1": 0.5, "2": 2 / 3})
    assert (summary["num_problems"], summary["samples_per_problem"]) == (3, 2)
    assert summary["interval"] == "bootstrap over problems"
    assert summary["accuracy_low"] <= 0.5 <= summary["accuracy_high"]


def test_one_sample_a_problem_takes_wilsons_interval():
    summary = summarise(rows({str(i): [i < 8] for i in range(10)}), (1,), seed=0)
    assert summary["interval"] == "wilson"
    assert summary["accuracy_low"] == pytest.approx(0.4902, abs=1e-4)


@pytest.mark.parametrize("outcome", [True, False])
def test_an_interval_has_a_width_even_where_every_sample_agrees(outcome: bool):
    summary = summarise(rows({str(i): [outcome] * 4 for i in range(30)}), (1,), seed=0)
    assert summary["accuracy"] == float(outcome)
    assert summary["accuracy_high"] - summary["accuracy_low"] == pytest.approx(0.1135, abs=1e-4)


def test_a_paired_difference_pairs_by_problem_and_ignores_order():
    before = {"c": [False, False], "b": [True, False], "a": [False, False]}
    difference = paired_difference(rows(MIXED), rows(before), seed=0)
    assert difference.mean == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert difference.num_problems == 3
    assert 0 <= difference.low <= difference.mean <= difference.high <= 0.5


def test_the_same_samples_differ_by_nothing():
    difference = paired_difference(rows(MIXED), rows(MIXED), seed=0)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_only_shared_problems_are_compared():
    difference = paired_difference(rows(MIXED), rows({"a": [False, False]}), seed=0)
    assert difference.num_problems == 1


def test_evaluations_without_a_shared_problem_are_refused():
    with pytest.raises(TinsmithError, match="share problems"):
        paired_difference(rows(MIXED), rows({"z": [True]}), seed=0)
