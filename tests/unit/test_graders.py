"""Graders: what counts as right, and that nothing a model writes breaks them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.tasks.graders import GRADERS, exact, normalised, numeric


def test_exact_ignores_white_space_around_and_nothing_else():
    assert exact(" 85\n", "85")
    assert not exact("85.", "85")
    assert not exact("paris", "Paris")


def test_normalised_ignores_case_punctuation_articles_and_spacing():
    assert normalised("The  Eiffel-tower!", "eiffeltower")
    assert normalised("an apple", "Apple")
    assert not normalised("another", "other")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The total is 1,250.0 euros", "1250"),
        ("27+58=85", "85"),
        ("it is \N{MINUS SIGN}5", "-5"),
        ("3-5", "5"),
        ("first 12, then 7.", "7"),
        ("0.50", ".5"),
    ],
)
def test_numeric_compares_the_last_numbers_by_value(text: str, answer: str):
    assert numeric(text, answer)


@pytest.mark.parametrize(("text", "answer"), [("85", "86"), ("none", "3"), ("1,25", "125")])
def test_numeric_refuses_other_numbers_and_none(text: str, answer: str):
    assert not numeric(text, answer)


def test_numeric_accepts_nothing_where_the_answer_has_no_number():
    assert not numeric("nothing", "nothing")


@given(st.sampled_from(sorted(GRADERS)), st.text(), st.text())
def test_graders_never_raise(grader: str, text: str, answer: str):
    assert GRADERS[grader](text, answer) in (True, False)


@given(st.text(alphabet="0123456789.,-\N{MINUS SIGN}eE+ \N{ARABIC-INDIC DIGIT TWO}", max_size=40))
def test_numeric_never_raises_on_what_looks_like_numbers(text: str):
    assert numeric(text, "12") in (True, False)
