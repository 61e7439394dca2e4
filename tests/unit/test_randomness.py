"""Seeds and the order of problems: functions of the run's seed and of where they are used."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tinsmith.problems import draw_problems
from tinsmith.randomness import derive_seed
from tinsmith.types import Problem

PROBLEMS = [Problem(str(i), f"q{i}", f"a{i}") for i in range(10)]


def test_a_derived_seed_stays_what_it_was():
    assert derive_seed(0, "grpo", 3, 7, "abc") == 1429620565


def test_derived_seeds_differ_by_every_part_of_their_path():
    paths = [(0, "grpo", 1, 2), (1, "grpo", 1, 2), (0, "rejection", 1, 2), (0, "grpo", 2, 1)]
    seeds = {derive_seed(seed, *path) for seed, *path in paths}
    assert len(seeds) == len(paths)


@given(st.integers(0, 2**63), st.text(), st.integers(0, 10**9))
def test_derived_seeds_fit_31_bits(seed: int, name: str, step: int):
    assert 0 <= derive_seed(seed, name, step) < 2**31


def test_every_epoch_holds_every_problem_once():
    drawn = [p for step in range(10) for p in draw_problems(PROBLEMS, 3, step, 0, "stage")]
    for start in range(0, 30, 10):
        assert Counter(p.id for p in drawn[start : start + 10]) == Counter(p.id for p in PROBLEMS)


def test_epochs_are_shuffled_each_in_its_own_order():
    first = [p.id for p in draw_problems(PROBLEMS, 10, 0, 0, "stage")]
    second = [p.id for p in draw_problems(PROBLEMS, 10, 1, 0, "stage")]
    assert first != second


def test_a_step_draws_the_same_whatever_was_drawn_before():
    straight = [draw_problems(PROBLEMS, 7, step, 4, "stage") for step in range(5)]
    assert draw_problems(PROBLEMS, 7, 4, 4, "stage") == straight[4]


def test_seed_and_stage_change_the_order():
    orders = {
        tuple(p.id for p in draw_problems(PROBLEMS, 10, 0, seed, stage))
        for seed in (0, 1)
        for stage in ("a", "b")
    }
    assert len(orders) == 4
