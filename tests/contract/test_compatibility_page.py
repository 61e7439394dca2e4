"""docs/compatibility.md says what is so: `make compatibility` writes it anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tinker

from tests.compatibility.environments import ROOT, other_versions, python_of
from tests.compatibility.probes import probe_of
from tests.compatibility.surface import commands, methods
from tests.compatibility.table import read_table
from tests.compatibility.trial import try_version
from tinsmith.serving import Endpoint

NEWEST = tinker.__version__


@pytest.fixture(scope="module")
def page() -> dict[str, dict[str, str]]:
    return read_table((ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8"))


def test_the_page_has_a_column_for_each_sdk(page: dict[str, dict[str, str]]):
    assert set(page) == {NEWEST, *other_versions()}


def test_every_method_and_command_of_the_newest_sdk_is_tried_and_none_fails(
    page: dict[str, dict[str, str]],
):
    names = [*methods(), *commands()]
    assert [name for name in names if probe_of(name) is None] == []
    assert set(page[NEWEST]) == set(names)
    assert set(page[NEWEST].values()) == {"works", "refused"}


@pytest.mark.parametrize("version", other_versions())
def test_the_page_names_the_methods_of_the_earlier_sdks(
    version: str, page: dict[str, dict[str, str]]
):
    python = python_of(version)
    if not python.exists():
        pytest.skip(f"{python} is missing: python -m tests.compatibility.environments")
    listed = subprocess.run(
        [python, "-m", "tests.compatibility.surface"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert set(page[version]) == set(json.loads(listed.stdout))
    assert set(page[version].values()) <= {"works", "refused", "broken"}


def test_the_newest_sdk_gets_what_the_page_says(
    page: dict[str, dict[str, str]], endpoint: Endpoint, qwen3_dir: Path
):
    # Its methods: test_tinker_cli.py holds the commands, which take longer.
    outcomes = try_version(Path(sys.executable), endpoint, qwen3_dir.parent)
    assert set(outcomes) == set(methods())
    wrong = {
        name: outcome for name, outcome in outcomes.items() if outcome.verdict != page[NEWEST][name]
    }
    assert wrong == {}
