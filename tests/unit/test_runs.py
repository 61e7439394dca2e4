"""Runs: their names, and which of their artifacts change with which key."""

from typing import Any

import pytest

from tests.configs import config, grpo, recipe
from tinsmith.config import Cookbook, check
from tinsmith.errors import TinsmithError
from tinsmith.runs import RunConfig, expand, settings_json


def only_run(values: dict[str, Any]) -> RunConfig:
    return next(iter(expand(check(values)).values()))


def test_seeds_and_swept_values_fan_out_into_named_runs() -> None:
    sweep = {"grpo.learning_rate": [1e-4, "auto"], "lora.rank": [4]}
    runs = expand(check(config(seeds=[0, 1], sweep=sweep)))
    assert list(runs) == [
        "seed=0+grpo.learning_rate=0.0001+lora.rank=4",
        "seed=1+grpo.learning_rate=0.0001+lora.rank=4",
        "seed=0+grpo.learning_rate=auto+lora.rank=4",
        "seed=1+grpo.learning_rate=auto+lora.rank=4",
    ]
    first = runs["seed=0+grpo.learning_rate=0.0001+lora.rank=4"]
    assert first.config.stages[1].model_dump()["learning_rate"] == 1e-4
    assert first.config.lora.rank == 4


def test_an_argument_of_a_recipe_is_swept_though_the_config_does_not_give_it() -> None:
    runs = expand(check(recipe() | {"sweep": {"cookbook.arguments.a.b": [1e-4]}}))
    [(name, run)] = runs.items()
    assert name == "seed=0+cookbook.arguments.a.b=0.0001"
    stage = run.stage("cookbook")
    assert isinstance(stage, Cookbook)
    assert stage.arguments == {"a.b": 1e-4}


def test_a_model_of_a_path_is_called_by_the_name_that_it_is_given() -> None:
    model = {"kind": "path", "path": "some/where", "name": "Org/Name"}
    run = only_run(config(model=model))
    assert (run.model_name, run.model_key, run.model_dir) == ("Org/Name", "Org__Name", "some/where")


def test_names_are_safe_for_files() -> None:
    sweep = {"task.system_prompt": ["Think / then answer: ../../x", None]}
    names = list(expand(check(config(sweep=sweep))))
    assert names == [
        "seed=0+task.system_prompt=Think-then-answer-..-..-x",
        "seed=0+task.system_prompt=None",
    ]


def test_values_that_make_the_same_name_are_refused() -> None:
    with pytest.raises(TinsmithError, match="its own name"):
        expand(check(config(sweep={"task.system_prompt": ["a b", "a/b"]})))


def test_values_that_clash_only_together_are_refused() -> None:
    sweep = {"data.held_out": [300, 500], "evaluation.num_problems": [250, 400]}
    with pytest.raises(TinsmithError, match=r"data.held_out = 300, .* got 250 \+ 64"):
        expand(check(config(sweep=sweep)))


def test_a_stage_depends_on_its_own_settings_and_not_on_another_stages() -> None:
    before, after = only_run(grpo()), only_run(grpo(learning_rate=1e-3))
    assert before.train_settings("grpo") != after.train_settings("grpo")
    assert before.train_settings("supervised") == after.train_settings("supervised")
    assert before.work_dir("supervised") == after.work_dir("supervised")
    assert before.work_dir("grpo") != after.work_dir("grpo")


def test_progress_of_a_stage_is_void_when_a_stage_before_it_changes() -> None:
    stages = [{"kind": "supervised", "steps": 5}, {"kind": "grpo", "steps": 2}]
    assert only_run(config()).work_dir("grpo") != only_run(config(stages=stages)).work_dir("grpo")


def test_threads_and_gpus_are_no_part_of_an_experiment() -> None:
    plain = only_run(config())
    wide = only_run(config(backend={"threads": 8, "gpus": 1}))
    assert settings_json(plain.train_settings("grpo")) == settings_json(wide.train_settings("grpo"))
    assert "threads" not in settings_json(plain.train_settings("grpo"))


def test_the_tiny_model_depends_on_the_digits_and_not_on_the_number_of_problems() -> None:
    plain = only_run(config())
    more = only_run(config(data={"kind": "arithmetic", "num_problems": 3000}))
    longer = only_run(config(data={"kind": "arithmetic", "digits": 3}))
    assert plain.model_key == more.model_key != longer.model_key
    assert plain.data_key != more.data_key


def test_a_hub_model_is_called_as_on_the_hub_and_lies_in_a_folder_of_its_name() -> None:
    run = only_run(config(model={"kind": "hub", "name": "Org/Name", "revision": "0" * 40}))
    assert (run.model_name, run.model_dir) == ("Org/Name", "models/Org__Name")


def test_a_model_given_by_its_path_is_used_in_place() -> None:
    run = only_run(config(model={"kind": "path", "path": "some/where"}))
    assert (run.model_name, run.model_dir) == ("where", "some/where")


def test_two_revisions_of_one_model_cannot_be_swept() -> None:
    hub = {"kind": "hub", "name": "Org/Name", "revision": "0" * 40}
    with pytest.raises(TinsmithError, match="two revisions"):
        expand(check(config(model=hub, sweep={"model.revision": ["0" * 40, "1" * 40]})))


def test_the_stage_before_the_first_is_the_base() -> None:
    run = only_run(config())
    assert [run.before(stage) for stage in run.stage_names()] == ["base", "supervised"]
