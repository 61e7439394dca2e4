"""What a model judge is shown, with a model that knows every answer's log-probability."""

from typing import Any

import tinker

from tests.speakers import CHAT, Ready, frozen_models
from tinsmith import config
from tinsmith.judges import make_judge
from tinsmith.tasks import make_task
from tinsmith.types import Completion, Problem, Reward, Rollout, Turn

SECTION = config.ModelJudge(kind="model", prompt="{question}|{debate}|{first} or {second}?")


class Reader:
    """Keeps the text of every prompt that it is asked about."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def compute_logprobs(self, prompt: tinker.ModelInput) -> Ready:
        self.read.append(CHAT.decode(prompt.to_ints()))
        return Ready([None, -1.0])


def prompts_of_judge(task: Any, problem: Problem) -> set[str]:
    """What the judge reads of a debate in which the speakers say yes and no."""
    reader = Reader()
    judge = make_judge(SECTION, frozen_models({None: reader}))
    turns = [
        Turn(speaker, (1,), Completion(CHAT.encode(text), (), text, is_finished=True))
        for speaker, text in (("first", "yes"), ("second", "no"))
    ]
    rewards = {speaker: Reward(0.0, {}, is_right=False) for speaker in ("first", "second")}
    judge.judge(task, [Rollout(problem, tuple(turns), rewards)], ("first", "second"), [0])
    messages = [text.removeprefix("user\n").rpartition("\nassistant\n") for text in reader.read]
    assert {verdict for _, _, verdict in messages} == {"A", "B"}
    return {message for message, _, _ in messages}


def test_a_model_judge_reads_the_problem_as_the_speakers_were_asked_it() -> None:
    values = {"kind": "qa", "grader": "multiple_choice", "prompt_template": "Choose. {question}"}
    task = make_task(config.QaTask.model_validate(values), CHAT)
    problem = Problem("p", "Capital of France?", "B", {"choices": ["Rome", "Paris"]})
    asked = "Choose. Capital of France?\nA. Rome\nB. Paris"
    assert asked in CHAT.decode(task.prompt(problem))
    found = prompts_of_judge(task, problem)
    assert found == {
        f"{asked}|A: yes\n\nB: no|A or B?",
        f"{asked}|A: no\n\nB: yes|A or B?",
    }


def test_a_model_judge_reads_the_instructions_that_the_speakers_had_to_keep() -> None:
    task = make_task(config.ConstrainedTask(kind="constrained"), CHAT)
    problem = Problem("p", "Describe tin.", "", {"constraints": {"max_words": 3}})
    asked = "Describe tin.\n\nUse at most 3 words."
    assert all(text.startswith(f"{asked}|") for text in prompts_of_judge(task, problem))
