"""Tasks: prompts, references and rewards."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rouge_score.rouge_scorer import RougeScorer

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError
from tinsmith.paradigms import PARADIGMS
from tinsmith.tasks import TASKS, Task, make_task, try_problems
from tinsmith.tasks.arithmetic import Arithmetic
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Completion, Problem, Reward

CHAT = Chat(make_tokenizer())
PROBLEM = Problem("id", "27+58", "85")
ARITHMETIC = make_task(config.ArithmeticTask(kind="arithmetic"), CHAT)
CAPITAL = Problem("id", "The capital of France?", "B", {"choices": ["Rome", "Paris", "Bonn"]})
DOCUMENT = " ".join(f"word{i}" for i in range(20))
DESCRIBED = Problem("id", DOCUMENT, "fast word counters")
LIMITED = Problem("id", "What is it?", "", {"constraints": {"max_words": 3, "keywords": ["Zinc"]}})


def task_of(values: dict[str, Any]) -> Task:
    return make_task(TypeAdapter(config.Task).validate_python(values), CHAT)


def qa(grader: str, **changes: Any) -> Task:
    return task_of({"kind": "qa", "grader": grader} | changes)


def summary(**changes: Any) -> Task:
    return task_of({"kind": "summary", "max_words": 5} | changes)


CHOICE = qa("multiple_choice")
CONSTRAINED = make_task(config.ConstrainedTask(kind="constrained"), CHAT)
EVERY_TASK = {
    "arithmetic": (ARITHMETIC, PROBLEM),
    "qa numeric": (qa("numeric"), PROBLEM),
    "qa multiple_choice": (CHOICE, CAPITAL),
    "qa regular_expression": (qa("regular_expression"), Problem("id", "q", "(a+)+$")),
    "math": (make_task(config.MathTask(kind="math"), CHAT), PROBLEM),
    "summary": (summary(), DESCRIBED),
    "constrained": (CONSTRAINED, LIMITED),
}


def completion(text: str, *, is_finished: bool = True) -> Completion:
    return Completion((1,), (-1.0,), text, is_finished)


def prompt_text(task: Task, problem: Problem) -> str:
    return CHAT.decode(task.prompt(problem))


@pytest.mark.parametrize("name", ["arithmetic", "qa numeric", "qa multiple_choice", "math"])
def test_the_reference_of_a_task_earns_its_full_reward(name: str):
    task, problem = EVERY_TASK[name]
    text = CHAT.decode(task.reference(problem))
    assert task.reward(problem, completion(text)).value == 1.0


@pytest.mark.parametrize("text", ["86", "85.", "27+58=85", "", "eighty-five"])
def test_arithmetic_rewards_nothing_but_the_number(text: str):
    reward = ARITHMETIC.reward(PROBLEM, completion(text))
    assert (reward.value, reward.is_right) == (0.0, False)


def test_arithmetic_does_not_reward_a_number_that_was_cut_off():
    assert not ARITHMETIC.reward(PROBLEM, completion("85", is_finished=False)).is_right


@pytest.mark.parametrize("name", EVERY_TASK)
@given(text=st.text() | st.text(alphabet="{}[]()\\boxed#-0123456789aB.\n", max_size=60))
def test_no_task_raises_and_every_reward_is_the_sum_of_its_terms(name: str, text: str):
    task, problem = EVERY_TASK[name]
    reward = task.reward(problem, completion(text))
    assert reward.value == pytest.approx(sum(reward.terms.values()))
    assert 0 <= reward.value <= 1


@pytest.mark.parametrize("kind", sorted(set(TASKS) - {"constrained"}))
def test_every_task_puts_the_question_into_its_template_braces_and_all(kind: str):
    values = {"kind": kind, "prompt_template": "Q: {question}\nA:", "system_prompt": "Be brief."}
    values |= {"grader": "exact"} if kind == "qa" else {}
    values |= {"max_words": 3} if kind == "summary" else {}
    said = prompt_text(task_of(values), Problem("id", "what is {x}?", "1"))
    assert "Q: what is {x}?\nA:" in said
    assert "Be brief." in said


def test_choices_stand_in_the_prompt_with_their_letters():
    assert "The capital of France?\nA. Rome\nB. Paris\nC. Bonn" in prompt_text(CHOICE, CAPITAL)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("B", True), ("paris.", True), ("The answer is (B).", True), ("C", False), ("Rome", False)],
)
def test_a_choice_is_right_by_its_letter_or_by_its_text(text: str, is_right: bool):
    assert CHOICE.reward(CAPITAL, completion(text)).is_right == is_right


@pytest.mark.parametrize(("answers", "answer"), [("text", "Paris"), ("index", "1")])
def test_an_answer_may_name_its_choice_by_text_or_place(answers: str, answer: str):
    problem, task = (
        Problem("id", "q", answer, CAPITAL.extra),
        qa("multiple_choice", answers=answers),
    )
    assert CHAT.decode(task.reference(problem)) == "B"
    assert task.reward(problem, completion("B")).is_right


def test_choices_of_a_csv_file_are_read_as_json():
    problem = Problem("id", "q", "A", {"choices": '["one", "two"]'})
    assert "A. one\nB. two" in prompt_text(CHOICE, problem)


def test_a_completion_without_a_letter_is_not_parsed():
    assert not CHOICE.reward(CAPITAL, completion("Well, B is a letter")).is_parsed
    assert CHOICE.reward(CAPITAL, completion("C")).is_parsed


@pytest.mark.parametrize(
    ("task", "problem", "said"),
    [
        (CHOICE, Problem("i", "q", "D", CAPITAL.extra), "must be the letter of a choice"),
        (CHOICE, Problem("i", "q", "Paris"), "one of A, B, C, D"),
        (CHOICE, Problem("i", "q", "A", {"choices": "no"}), "choices must be JSON, got 'no'"),
        (CHOICE, Problem("i", "q", "A", {"choices": ["one"]}), "must be a list of 2 to 26 texts"),
        (qa("regular_expression"), Problem("i", "q", "(("), "must be a regular expression"),
        (summary(), Problem("i", "q", "\u4f60\u597d"), "must have words in letters a to z"),
        (CONSTRAINED, Problem("i", "q", "", {}), "constraints: "),
        (
            CONSTRAINED,
            Problem("i", "q", "", {"constraints": {"max_wrods": 3}}),
            "constraints: max_wrods is not a known key; did you mean 'max_words'?",
        ),
        (
            CONSTRAINED,
            Problem("i", "q", "", {"constraints": {}}),
            "max_words or another of",
        ),
        (
            CONSTRAINED,
            Problem("i", "q", "", {"constraints": {"keywords": ["a"], "forbidden": ["A"]}}),
            "forbidden must not list keywords",
        ),
    ],
)
def test_a_problem_that_its_task_cannot_use_is_refused_before_any_is_asked(
    task: Task, problem: Problem, said: str
):
    with pytest.raises(TinsmithError) as caught:
        try_problems(task, [problem])
    assert said in str(caught.value)
    assert "the problem i ('q')" in str(caught.value)


def test_a_reward_that_is_not_the_sum_of_its_terms_is_refused():
    class Wrong(Arithmetic):
        def reward(self, problem: Problem, completion: Completion) -> Reward:
            return Reward(float("nan"), {"correct": 1.0}, is_right=True)

    task = Wrong(CHAT, config.ArithmeticTask(kind="arithmetic"))
    with pytest.raises(TinsmithError, match="must be the sum of its terms"):
        try_problems(task, [PROBLEM])


@pytest.mark.parametrize("what", ["prompt", "question"])
def test_a_problem_that_asks_nothing_is_refused(what: str):
    class Silent(Arithmetic):
        pass

    setattr(Silent, what, lambda self, problem: "")
    task = Silent(CHAT, config.ArithmeticTask(kind="arithmetic"))
    with pytest.raises(TinsmithError, match=f"must have a {what}, but it is empty"):
        try_problems(task, [PROBLEM])


def test_a_summary_earns_what_it_leaves_out_within_its_budget():
    task = summary(weights={"compression": 1.0, "rouge": 0.0})

    def earned(text: str, *, is_finished: bool = True) -> float:
        return task.reward(DESCRIBED, completion(text, is_finished=is_finished)).value

    assert earned("one two three four five") == pytest.approx(1 - 5 / 20)
    assert earned("one") == pytest.approx(1 - 1 / 20)
    assert earned("one two three four five six") == 0.0
    assert earned("") == 0.0
    assert earned("one", is_finished=False) == 0.0


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_a_summary_earns_its_rouge_with_the_reference(kind: str):
    task = summary(weights={"compression": 0.0, "rouge": 2.0}, rouge=kind, right_from=1.0)
    text = "A counter of fast words"
    expected = RougeScorer([kind], use_stemmer=True).score("fast word counters", text)
    reward = task.reward(DESCRIBED, completion(text))
    assert reward.terms["rouge"] == pytest.approx(2 * expected[kind].fmeasure)
    if kind == "rouge1":  # fast, word(s), counter(s) of 3 and 5 words: F1 = 2 * 3 / (3 + 5)
        assert reward.value == pytest.approx(2 * 0.75)
        assert reward.is_right


@pytest.mark.parametrize(
    ("constraints", "follows", "does_not"),
    [
        ({"min_words": 3}, "one two three", "one two"),
        ({"max_words": 2}, "one two", "one two three"),
        ({"max_words": 2}, "one", ""),
        ({"max_characters": 5}, " abcde ", "abcdef"),
        ({"max_sentences": 1}, "Version 2.0 is out.", "One. Two"),
        ({"keywords": ["tin"]}, "Tin!", "tinker"),
        ({"keywords": ["tin", "lead"]}, "lead, tin", "lead"),
        ({"forbidden": ["tin"]}, "tinker", "a TIN"),
        ({"starts_with": "So"}, " So it is", "so it is"),
        ({"ends_with": "!"}, "yes! ", "yes"),
        ({"format": "json"}, '{"a": [1]}', '{"a": [1}'),
        ({"format": "json"}, "1", "[" * 100_000),
        ({"format": "bullets"}, "- one\n\n- two", "- one\ntwo"),
        ({"format": "one_line"}, "one\n", "one\ntwo"),
        ({"format": "lowercase"}, "one 2", "One"),
        ({"format": "uppercase"}, "ONE 2", "one"),
    ],
)
def test_every_instruction_is_checked(constraints: dict[str, Any], follows: str, does_not: str):
    problem = Problem("id", "q", "", {"constraints": constraints})
    assert CONSTRAINED.reward(problem, completion(follows)).is_right
    assert not CONSTRAINED.reward(problem, completion(does_not)).is_right


def test_the_share_of_instructions_that_are_followed_is_weighted():
    task = task_of({"kind": "constrained", "weights": {"max_words": 3.0}})
    reward = task.reward(LIMITED, completion("two words"))
    assert dict(reward.terms) == {"max_words": 0.75, "keywords": 0.0}
    assert (reward.value, reward.is_right) == (0.75, False)


def test_instructions_are_said_in_the_prompt():
    said = prompt_text(CONSTRAINED, LIMITED)
    assert "What is it?\n\nUse at most 3 words. Use these words: Zinc." in said


def test_the_registries_name_every_kind_that_the_config_knows():
    assert set(TASKS) == {"arithmetic", "qa", "math", "summary", "constrained"}
    assert set(PARADIGMS) >= {"single_turn"}
