"""The math task: what is equal to the reference answer, and what a hostile text cannot do."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.math import Math, marked_answer
from tinsmith.tasks.math_verifier import MathVerifier
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Completion, Problem, Reward

CHAT = Chat(make_tokenizer())


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


def graded(verifier: MathVerifier, answer: str, text: str, **changes: object) -> Reward:
    section = config.MathTask.model_validate({"kind": "math"} | changes)
    task = Math(CHAT, section, verifier)
    return task.reward(Problem("id", "q", answer), Completion((1,), (-1.0,), text, True))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("First 3.\n#### 1,234\n", "1,234"),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("#### 3, that is \\boxed{4}", "4"),
        ("\\boxed{4}\n#### 3", "3"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1", None),
        ("####", None),
        ("just 3", None),
    ],
)
def test_the_answer_stands_in_the_last_box_or_behind_the_last_mark(text: str, answer: str | None):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Tom has 3 * 400 = 1200.\n#### 1,200", "It is \\boxed{1200}"),
        ("#### 18", "18 eggs, so #### $18.00"),
        ("#### 18", "he makes 18 dollars"),
        ("\\boxed{\\frac{1}{2}}", "#### 0.5"),
        ("\\frac{1}{2}", "I get $\\frac{2}{4}$"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}"),
        ("(1, 2)", "\\boxed{(1,2)}"),
        ("\\frac{\\sqrt{2}}{2}", "\\boxed{\\frac{1}{\\sqrt{2}}}"),
    ],
)
def test_equal_values_are_right_however_they_are_written(
    verifier: MathVerifier, answer: str, text: str
):
    reward = graded(verifier, answer, text)
    assert (reward.value, reward.is_right, reward.is_parsed) == (1.0, True, True)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("#### 18", "#### 19"),
        ("#### 18", "18 and then \\boxed{81}"),
        ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{3}}"),
        ("x^2", "\\boxed{x^3}"),
        ("#### 18", "no idea"),
        ("\\frac{1}{2}", ""),
    ],
)
def test_other_values_are_wrong(verifier: MathVerifier, answer: str, text: str):
    assert not graded(verifier, answer, text).is_right


def test_the_terms_say_what_was_right_and_what_was_marked(verifier: MathVerifier):
    weights = {"correct": 1.0, "format": 0.25}
    assert graded(verifier, "3", "so 3", weights=weights).terms == {"correct": 1.0, "format": 0.0}
    marked = graded(verifier, "3", "#### 4", weights=weights)
    assert marked.terms == {"correct": 0.0, "format": 0.25}
    assert marked.value == 0.25


def test_a_text_without_a_number_is_not_parsed(verifier: MathVerifier):
    assert not graded(verifier, "3", "no idea").is_parsed
    assert graded(verifier, "3", "maybe 4").is_parsed


@pytest.mark.parametrize("bomb", ["9^{9^{9^{9^{9}}}}", "99999999999!"])
def test_an_expression_that_takes_for_ever_is_ended_and_the_next_is_compared(
    verifier: MathVerifier, bomb: str
):
    assert not graded(verifier, "\\frac{1}{2}", f"\\boxed{{{bomb}}}", timeout_s=1.0).is_right
    assert graded(verifier, "\\frac{1}{2}", "\\boxed{0.5}", timeout_s=60.0).is_right


@pytest.mark.parametrize("text", ["\\boxed{" * 3000, "\\boxed{\\frac{" + "}" * 9000, "{" * 99_999])
def test_nested_braces_are_only_wrong(verifier: MathVerifier, text: str):
    assert not graded(verifier, "\\frac{1}{2}", text).is_right


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="0123456789.,-+*/^(){}\\fracsqtboxed$# =x\u0663\u221e\n", max_size=30))
def test_no_text_makes_grading_raise(verifier: MathVerifier, text: str):
    reward = graded(verifier, "\\frac{1}{2}", text)
    assert reward.value in (0.0, 1.0)
