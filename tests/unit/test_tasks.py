"""Tasks: prompts, references and rewards."""

import pytest

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.paradigms import PARADIGMS
from tinsmith.tasks import TASKS, make_task
from tinsmith.tiny.tokenizer import make_tokenizer
from tinsmith.types import Completion, Problem

CHAT = Chat(make_tokenizer())
PROBLEM = Problem("id", "27+58", "85")
ARITHMETIC = make_task(config.ArithmeticTask(kind="arithmetic"), CHAT)


def completion(text: str, *, is_finished: bool = True) -> Completion:
    return Completion((1,), (-1.0,), text, is_finished)


def test_the_reference_of_a_task_earns_its_full_reward():
    for section in (
        config.ArithmeticTask(kind="arithmetic"),
        config.QaTask(kind="qa", grader="numeric"),
    ):
        task = make_task(section, CHAT)
        text = CHAT.decode(task.reference(PROBLEM))
        assert task.reward(PROBLEM, completion(text)).value == 1.0


@pytest.mark.parametrize("text", ["86", "85.", "27+58=85", "", "eighty-five"])
def test_arithmetic_rewards_nothing_but_the_number(text: str):
    reward = ARITHMETIC.reward(PROBLEM, completion(text))
    assert (reward.value, reward.is_right) == (0.0, False)


def test_arithmetic_does_not_reward_a_number_that_was_cut_off():
    assert not ARITHMETIC.reward(PROBLEM, completion("85", is_finished=False)).is_right


def test_a_reward_is_the_sum_of_its_terms():
    reward = ARITHMETIC.reward(PROBLEM, completion("85"))
    assert reward.value == sum(reward.terms.values())


def test_qa_puts_the_question_into_its_template_braces_and_all():
    section = config.QaTask(kind="qa", grader="exact", prompt_template="Q: {question}\nA:")
    prompt = make_task(section, CHAT).prompt(Problem("id", "what is {x}?", ""))
    assert "Q: what is {x}?\nA:" in make_tokenizer().decode(list(prompt))


def test_the_registries_name_every_kind_that_the_config_knows():
    assert set(TASKS) == {"arithmetic", "qa"}
    assert set(PARADIGMS) == {"single_turn"}
