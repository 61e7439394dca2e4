"""Graders: what counts as right, and that nothing a model writes breaks them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.tasks.graders import (
    GRADERS,
    exact,
    is_parsed,
    multiple_choice,
    normalised,
    numeric,
    regular_expression,
)


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


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "B.",
        "(B)",
        "**B**",
        "B. Paris",
        "B\nbecause A is wrong",
        "The answer is B.",
        "Answer: (B)",
        "A is tempting, but the answer is **B**",
        "the answer is A? No, the answer is B",
        "I would say (A), no, (B)",
        "so \\boxed{B}",
    ],
)
def test_multiple_choice_finds_the_letter_that_a_text_decides_for(text: str):
    assert multiple_choice(text, "B")
    assert not multiple_choice(text, "A")


@pytest.mark.parametrize(
    "text", ["", "A dog", "I think so", "Both B and C", "b", "The answer isn't"]
)
def test_multiple_choice_finds_no_letter_in_a_sentence(text: str):
    assert not any(multiple_choice(text, letter) for letter in "ABCI")
    assert not is_parsed("multiple_choice", text)


def test_a_regular_expression_is_searched_for_and_may_be_anchored():
    assert regular_expression("it was 1984.", r"\b19[0-9]{2}\b")
    assert not regular_expression("it was 1984.", r"^19[0-9]{2}$")
    assert regular_expression("PARIS", "(?i)paris")


def test_a_pattern_that_backtracks_for_ever_is_ended():
    assert not regular_expression("a" * 40 + "b" * 200, r"^(a|a|aa)+$|^(?:(?:a*)*)*c")


@given(st.sampled_from(sorted(GRADERS)), st.text(), st.text())
def test_graders_never_raise(grader: str, text: str, answer: str):
    assert GRADERS[grader](text, answer) in (True, False)


@given(st.text(alphabet="0123456789.,-\N{MINUS SIGN}eE+ \N{ARABIC-INDIC DIGIT TWO}", max_size=40))
def test_numeric_never_raises_on_what_looks_like_numbers(text: str):
    assert numeric(text, "12") in (True, False)
