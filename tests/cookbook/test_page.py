"""docs/cookbook.md against the cookbook that is installed."""

from pathlib import Path

import pytest

from tests.cookbook.documented import named_recipes, read_page
from tests.cookbook.recipes import PYTHON


def programs(package: Path) -> set[str]:
    """Modules of the recipes that can be started, as names below `tinker_cookbook.recipes`."""
    return {
        ".".join(file.relative_to(package).with_suffix("").parts)
        for file in package.rglob("*.py")
        if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8").splitlines()
    }


def test_the_page_names_every_recipe_of_the_cookbook():
    found = list(PYTHON.parents[1].glob("lib/python*/site-packages/tinker_cookbook/recipes"))
    if not found:
        pytest.skip(f"{PYTHON} has no tinker-cookbook; make cookbook installs it")
    assert programs(found[0]) - named_recipes() == set()


def test_every_command_of_the_page_is_read():
    _, commands = read_page()
    assert len(commands) > 40
