"""The table of settings in docs/local-backend.md: `python -m tests.settings_table` writes it."""

from pathlib import Path

from tinsmith.settings import LocalSettings, ServerSettings, option, rule_of, text_of, variables

PAGE = Path(__file__).parents[1] / "docs" / "local-backend.md"
BEGIN, END = "<!-- settings: made from tinsmith/settings -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """A row for each setting, as it is defined."""
    rows = ["| option | variable | default | must be | |", "|---|---|---|---|---|"]
    named = variables(ServerSettings)
    for name, field in ServerSettings.model_fields.items():
        if field.json_schema_extra is None:
            continue
        variable = f"`{named[name]}`" if name in named else ""
        default = text_of(field.default)
        only = "" if name in LocalSettings.model_fields else " *(no key of the config)*"
        words = f"{field.description}{only}"
        rows.append(f"| `{option(name)}` | {variable} | `{default}` | {rule_of(field)} | {words} |")
    return "\n".join(rows) + "\n"


def page_with(new: str, page: str) -> str:
    """`page` with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{new}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
