"""docs/local-backend.md names every setting as it is defined, and every other variable."""

from tests.settings_table import PAGE, page_with, table
from tinsmith.config.environment import VARIABLES
from tinsmith.config.sections import Backend
from tinsmith.settings import variables


def test_the_page_holds_the_table_of_the_definition():
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with(table(), page), "python -m tests.settings_table writes it anew"
    assert "`TINKER_LOCAL_MIN_P` | `0.0` | a number from 0 to 1 |" in page


def test_the_page_names_the_pipelines_variables():
    page = PAGE.read_text(encoding="utf-8")
    for variable in [*VARIABLES.values(), *variables(Backend).values()]:
        assert f"`{variable}`" in page, variable
