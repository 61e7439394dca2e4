"""docs/checkpoints.md: every example in it, run on what a small pipeline left."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cookbook.recipes import end_of
from tests.pages import DOCS, blocks, blocks_in
from tests.pipeline.small import CONFIG
from tests.pipeline.workflow import Workflow, workflow_environment
from tinsmith.config import Checkpoints, check

PAGE = DOCS / "checkpoints.md"
STAGE = Path("results/seed=0/grpo")
TIMEOUT_S = 600


def info(finished: Workflow) -> dict[str, Any]:
    return json.loads((finished.folder / STAGE / "final_checkpoint_info.json").read_text())


def run(finished: Workflow, *command: str) -> str:
    """What a command said that ended well."""
    ended = end_of(command, finished.folder, workflow_environment(), TIMEOUT_S)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def bash(finished: Workflow, word: str) -> str:
    """Run the page's one block of shell commands that holds the word."""
    (block,) = (block for block in blocks_in(PAGE, "sh") if word in block)
    return run(finished, "bash", "-euc", block)


def test_the_page_holds_no_example_that_is_not_run_here() -> None:
    found = [language for language, _ in blocks(PAGE)]
    assert sorted(found) == ["", "python", *["sh"] * 4, "yaml"]


def test_the_settings_are_the_defaults() -> None:
    (block,) = blocks_in(PAGE, "yaml")
    assert check(CONFIG | yaml.safe_load(block)).checkpoints == Checkpoints()


def test_the_summary_of_a_stage_is_the_pages(finished: Workflow) -> None:
    (block,) = blocks_in(PAGE, "")
    log = (finished.folder / "logs/seed=0/grpo/train.log").read_text()
    summary = log[log.index("stage grpo is done, 2 steps") :].splitlines()
    shown = block.splitlines()
    names = [[re.match(r"  [a-z ]{7}", line) for line in lines[1:7]] for lines in (summary, shown)]
    assert [m and m[0] for m in names[0]] == [m and m[0] for m in names[1]]
    paths = info(finished)["checkpoints"]
    assert paths["final_state"] in summary[1]
    assert paths["sampler_weights"] in summary[2]


def test_the_checkpoints_are_listed_with_what_became_of_them(finished: Workflow) -> None:
    (block,) = blocks_in(PAGE, "python")
    said = [line.split() for line in run(finished, sys.executable, "-c", block).splitlines()]
    assert [words[:2] for words in said] == [["1", "periodic"], ["2", "final"]]
    assert said[-1][2] == str(info(finished)["best"]["validation_accuracy"])
    assert said[-1][3] == info(finished)["checkpoints"]["final_state"]


def test_the_programs_ask_and_train_on(finished: Workflow) -> None:
    said = bash(finished, "usage resuming")
    assert "loss:sum" in said
    assert re.search(r"tinker://\S+/weights/continued", said)
    assert info(finished)["model_id"] not in said  # another run goes on


@pytest.mark.parametrize("word", ["all\n", "existing: delete"])
def test_snakemake_has_nothing_to_do_for_what_is_done(word: str, finished: Workflow) -> None:
    assert "Nothing to be done" in bash(finished, word)


def test_a_folder_that_is_not_locked_can_be_unlocked(finished: Workflow) -> None:
    assert "Unlock" in bash(finished, "--unlock")
