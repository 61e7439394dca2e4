"""The config of tasks and debates: the one paragraph that each fault gets."""

from typing import Any

import pytest

from tests.configs import complaint, config, debate, grpo
from tinsmith.config import UserClass, check

WINNER = {"kind": "rejection", "select": "winner"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (debate({"samples_per_problem": 7}), "stages[0].samples_per_problem must be even with"),
        (debate({"samples_per_problem": 2}), "samples_per_problem must be at least 4 with"),
        (config(stages=[{"steps": 1} | WINNER]), "stages[0].select must be 'correct' or 'best'"),
        (grpo(learn_from="winners"), "stages[1].learn_from must be 'all' with paradigm.kind"),
        (
            debate(judge={"kind": "jury"}),
            "judge.kind must be one of mock, ground_truth, model, got",
        ),
        (debate(opponent={"kind": "poool"}), "did you mean 'pool'?"),
        (debate(opponent={"kind": "self", "every": 3}), "opponent.every is not a known key"),
        (debate(opponent={"kind": "latest", "every": 0}), "opponent.every must be at least 1, got"),
        (debate(rounds=-1), "paradigm.rounds must be at least 0, got -1"),
        (debate(graded="both"), "paradigm.graded must be 'proposal' or 'final', got 'both'"),
        (debate(weights={"verdict": 0.0}), "weights.verdict or task must be above 0, got 0 for"),
        (debate(argue_prompt="?"), "paradigm.argue_prompt must contain {opponent}, got '?'"),
        (debate(judge={"kind": "model", "prompt": "?"}), "judge.prompt must contain {debate}"),
        (debate(judge={"kind": "model", "checkpoint": "c.json"}), "must be the tinker:// path of"),
        (
            debate(judge={"kind": "model", "verdict_tokens": ["A", "A"]}),
            "judge.verdict_tokens must differ, got 'A' for both speakers",
        ),
        (
            config(paradigm={"kind": "debate"}),
            "paradigm.judge is required",
        ),
    ],
)
def test_every_fault_of_a_debate_names_the_key_the_rule_and_the_value(
    values: Any, said: str
) -> None:
    assert said in complaint(values)


def test_a_debate_that_fits_its_stages_passes() -> None:
    assert check(debate()).paradigm.kind == "debate"
    assert check(debate({"samples_per_problem": 7}, opponent={"kind": "pool"}))
    assert check(debate(WINNER | {"samples_per_problem": 2}))


FILE = {"kind": "file", "path": "a.jsonl", "held_out": 500}
NO_ANSWERS = FILE | {"answer_field": None}
GRPO = [{"kind": "grpo", "steps": 1}]
SUMMARY = {"kind": "summary", "max_words": 8}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            config(task={"kind": "mth"}),
            "task.kind must be one of arithmetic, qa, math, summary, constrained, module:Class, got"
            " 'mth'; did you mean 'math'?",
        ),
        (config(task={}), "task needs its `kind`"),
        (config(task={"kind": "a:b:c"}), "task.kind must name a class as module:Class, like"),
        (config(task={"kind": "a:B", "option": {}}), "task.option is not a known key; did you"),
        (config(paradigm={"kind": "single_trn"}), "module:Class, got 'single_trn'; did you mean"),
        (
            config(task={"kind": "qa", "grader": "exat"}),
            "'multiple_choice' or 'regular_expression'",
        ),
        (
            config(task={"kind": "qa", "grader": "exact", "answers": "text"}),
            "task.answers says how",
        ),
        (
            config(task={"kind": "qa", "grader": "regular_expression"}),
            "teach the model to write the",
        ),
        (config(task={"kind": "math", "weights": {"corect": 1}}), "did you mean 'correct'?"),
        (config(task={"kind": "math", "weights": {"correct": 0}}), "weight must be above 0"),
        (config(task={"kind": "summary"}), "task.max_words is required"),
        (config(task=SUMMARY | {"min_words": 9}), "task.min_words must be at most max_words = 8"),
        (config(task=SUMMARY | {"right_from": 2}), "task.right_from must be at most 1"),
        (
            config(task=SUMMARY | {"rouge": "rouge1", "weights": {"compression": 1, "rouge": 0}}),
            "task.rouge needs weights.rouge above 0, got 'rouge1' with 0",
        ),
        (
            config(paradigm={"kind": "a:B", "opponent": {"kind": "latest", "every": 0}}),
            "paradigm.opponent.every must be at least 1, got 0",
        ),
        (config(task={"kind": "constrained"}), "data.extra_fields must list 'constraints'"),
        (
            config(data=NO_ANSWERS, task=SUMMARY),
            "because stage 'supervised' and task.kind 'summary' must know the answers",
        ),
        (config(data=NO_ANSWERS, stages=GRPO), "because task.kind 'arithmetic' must know"),
    ],
)
def test_every_fault_of_a_task_is_told(values: Any, said: str) -> None:
    assert said in complaint(values)


def test_a_task_that_needs_no_answers_takes_data_without() -> None:
    weights = {"compression": 1, "rouge": 0}
    check(config(data=NO_ANSWERS, stages=GRPO, task=SUMMARY | {"weights": weights}))
    check(config(data=NO_ANSWERS, task={"kind": "my_code:MyTask"}))
    constrained = NO_ANSWERS | {"extra_fields": ["constraints"]}
    check(config(data=constrained, stages=GRPO, task={"kind": "constrained"}))


def test_a_class_of_the_users_keeps_its_options() -> None:
    options = {"size": 3, "names": ["a", "b"], "deep": {"x": None}}
    checked = check(config(task={"kind": "my.code:MyTask", "options": options}))
    assert isinstance(checked.task, UserClass)
    assert checked.task.options == options
    assert check(checked.model_dump(mode="json")) == checked
