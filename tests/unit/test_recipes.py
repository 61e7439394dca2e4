"""What is known of a recipe before it runs, and what it leaves."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.configs import config
from tinsmith.checkpoints import Checkpoint, Paths
from tinsmith.config import Backend, Cookbook, CookbookSettings, Lora, check
from tinsmith.cookbook.command import recipe_arguments
from tinsmith.cookbook.logs import find_log, last_checkpoint, read_metrics
from tinsmith.cookbook.plan import CookbookPlan
from tinsmith.cookbook.recipes import find_recipe
from tinsmith.errors import TinsmithError
from tinsmith.runs import expand

ROOT = Path(__file__).parents[2]
RECIPE = {"kind": "cookbook", "recipe": "mine.train"}

OWN = """
import chz

@chz.chz
class Common:
    log_path: str
    model_name: str

@chz.chz
class Config(Common):
    load_checkpoint_path: str | None = None
    nested: dict = {}

def main(config: Config):
    pass

if __name__ == "__main__":
    chz.nested_entrypoint(main)
"""


def checkpoint(stage: str) -> Checkpoint:
    paths = Paths(f"tinker://{stage}/weights/final", f"tinker://{stage}/sampler_weights/final")
    return Checkpoint(stage, "seed=0", 0, "Org/Name", 32, stage, 3, paths, "0")


def settings(**changes: object) -> CookbookSettings:
    stage = Cookbook.model_validate({"kind": "cookbook", "recipe": "mine.train", **changes})
    return CookbookSettings(
        run="seed=0", seed=7, model_name="Org/Name", stage=stage, lora=Lora(), backend=Backend()
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without a cookbook, and a recipe of the user's own in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/train.py").write_text(OWN)
    return tmp_path / "packages"


def test_a_recipes_arguments_are_those_of_its_class_and_what_that_is_made_of(
    packages: Path,
) -> None:
    recipe = find_recipe("mine.train", packages)
    known = {"log_path", "model_name", "load_checkpoint_path", "nested"}
    assert (recipe.module, recipe.arguments) == ("mine.train", known)


def test_tinsmith_gives_what_a_recipe_takes_and_fills_in_what_stands_for_something(
    packages: Path,
) -> None:
    recipe = find_recipe("mine.train", packages)
    told = settings(
        arguments={"nested.a": "{old.sampler}", "nested.b": "{model}", "nested.c": 1e-5}
    )
    said = recipe_arguments(
        recipe, told, checkpoint("before"), {"old": checkpoint("old")}, Path("log")
    )
    assert said == [
        "model_name=Org/Name",
        "log_path=log",
        "load_checkpoint_path=tinker://before/weights/final",
        "nested.a=tinker://old/sampler_weights/final",
        "nested.b=Org/Name",
        "nested.c=1e-05",
    ]


def test_what_stands_for_something_in_a_list_is_filled_in_too(packages: Path) -> None:
    told = settings(arguments={"nested.a": ["{old.state}", "x", "{model}"], "nested.b": []})
    recipe = find_recipe("mine.train", packages)
    said = recipe_arguments(recipe, told, None, {"old": checkpoint("old")}, Path("log"))
    assert said[-2:] == ["nested.a=tinker://old/weights/final,x,Org/Name", "nested.b="]


READS = """
import chz

@chz.chz
class Config:
    files: list[str]
    steps: tuple[int, ...]
    rates: list[float] | None = None
    model_name: str

found = chz.entrypoint(Config)
assert (found.files, found.steps, found.rates) == (["a b", "c"], (1, 2), [1e-5]), found
"""


def test_a_recipe_reads_lists_and_tuples_as_the_config_has_them(packages: Path) -> None:
    """By chz itself, in the environment of the recipes."""
    python = ROOT / ".venvs/cookbook/bin/python"
    if not python.exists():
        pytest.skip(f"{python} is missing; make cookbook makes it")
    Path("mine/lists.py").write_text(READS)
    arguments = {"files": ["a b", "c"], "steps": [1, 2], "rates": [1e-5]}
    told = settings(recipe="mine.lists", arguments=arguments)
    recipe = find_recipe("mine.lists", packages)
    said = recipe_arguments(recipe, told, None, {}, Path("log"))
    subprocess.run([python, "mine/lists.py", *said], check=True, timeout=120)


def test_the_rule_reads_checkpoints_and_files_that_stand_in_lists(packages: Path) -> None:
    Path("a.jsonl").touch()
    long = "word " * 1000  # more than a file's name can be
    given = {"sets": ["a.jsonl", "b.jsonl", 3], "prompt": long, "teachers": ["x", "{sft.state}"]}
    stages = [{"kind": "supervised", "steps": 1, "name": "sft"}, RECIPE | {"arguments": given}]
    plan = CookbookPlan(expand(check(config(stages=stages))))
    wildcards = SimpleNamespace(run="seed=0", stage="cookbook")
    assert plan.files(wildcards) == ["mine/train.py", "a.jsonl"]
    assert plan.checkpoints(wildcards) == ["results/seed=0/sft/checkpoint.json"]


def test_a_module_without_arguments_is_no_recipe(packages: Path) -> None:
    Path("mine/other.py").write_text("print('hello')\n")
    with pytest.raises(TinsmithError, match="must be a recipe that takes its arguments by chz"):
        find_recipe("mine.other", packages)


def write_rows(file: Path, *rows: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_step_that_was_taken_twice_counts_as_it_was_taken_last(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "metrics.jsonl",
        {"step": 0, "loss": 3, "name": "x", "nan": float("nan")},
        {"step": 1, "loss": 2.0},
        {"time": 5},
        {"step": 1, "loss": 2.5},
    )
    assert read_metrics(tmp_path) == [
        {"step": 0, "loss": 3},
        {"step": 1, "loss": 2.5, "time": 5},
    ]


def test_the_last_state_is_the_stages_and_a_sampler_only_if_it_stays(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints.jsonl"
    first = {"name": "000001", "state_path": "tinker://a/weights/1", "sampler_path": "tinker://s"}
    final = {"name": "final", "state_path": "tinker://a/weights/f", "sampler_path": "tinker://f"}
    write_rows(file, first)
    assert last_checkpoint(tmp_path).sampler is None
    write_rows(file, first, final, {"name": "x", "sampler_path": "tinker://x"})
    saved = last_checkpoint(tmp_path)
    assert (saved.state, saved.sampler, saved.model_id) == (*[*final.values()][1:], "a")
    write_rows(file)
    with pytest.raises(TinsmithError, match="must name a state to go on from"):
        last_checkpoint(tmp_path)


def test_a_recipe_saves_in_one_folder_of_its_own(tmp_path: Path) -> None:
    read, own = tmp_path / "a/sft", tmp_path / "a/rl"
    write_rows(read / "checkpoints.jsonl")
    with pytest.raises(TinsmithError, match=r"one log folder of its own, .* got none"):
        find_log(tmp_path, {read}, "x")
    write_rows(own / "checkpoints.jsonl")
    assert find_log(tmp_path, {read}, "x") == own
