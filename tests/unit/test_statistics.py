"""Intervals and estimators against numbers worked out by hand and by enumeration."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.statistics import bootstrap_mean, clustered_mean, pass_at_k, wilson


def test_wilson_gives_the_textbook_interval():
    interval = wilson(8, 10)
    assert interval.mean == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_of_no_success_starts_at_zero_and_has_a_width():
    interval = wilson(0, 30)
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.1135), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_within_zero_and_one(counts: tuple[int, int]):
    interval = wilson(*counts)
    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1


def test_bootstrap_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(0).normal(size=2000)
    interval = bootstrap_mean(values.tolist(), seed=1)
    half_width = 1.96 * values.std() / np.sqrt(2000)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_bootstrap_is_a_function_of_its_seed():
    values = [0.0, 0.25, 1.0, 0.5]
    assert bootstrap_mean(values, 3) == bootstrap_mean(values, 3)


def test_bootstrap_of_equal_values_has_no_width():
    interval = bootstrap_mean([0.5] * 7, 0)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_bootstrap_covers_the_true_mean_about_95_times_in_a_hundred():
    rng = np.random.default_rng(7)
    intervals = [bootstrap_mean(rng.binomial(1, 0.3, 100).tolist(), i) for i in range(200)]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in intervals)
    assert 178 <= covered <= 200  # binomial(200, 0.95): 190 +- 4 standard deviations


def test_samples_of_one_problem_make_an_interval_no_narrower():
    """Ten problems, each asked a hundred times with one answer, are ten trials, not 1000."""
    answers = [1.0] * 8 + [0.0] * 2
    interval, method = clustered_mean([[answer] * 100 for answer in answers], 0, "problems")
    assert (interval, method) == (wilson(8, 10), "wilson")


def test_clusters_of_several_sizes_weigh_the_same():
    interval, method = clustered_mean([[1.0, 0.0], [1.0], [0.0, 0.0, 0.0]], 0, "problems")
    assert interval == bootstrap_mean([0.5, 1.0, 0.0], 0)
    assert method == "bootstrap over problems"


@pytest.mark.parametrize(
    ("num_samples", "num_right", "k", "expected"),
    [(4, 1, 1, 0.25), (4, 1, 4, 1.0), (4, 0, 4, 0.0), (10, 3, 2, 1 - 21 / 45), (5, 5, 1, 1.0)],
)
def test_pass_at_k_by_hand(num_samples: int, num_right: int, k: int, expected: float):
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(expected)


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case: tuple[int, int, int]):
    num_samples, num_right, k = case
    subsets = list(combinations(range(num_samples), k))
    share = sum(min(subset) < num_right for subset in subsets) / len(subsets)
    assert pass_at_k(num_samples, num_right, k) == pytest.approx(share)
