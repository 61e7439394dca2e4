"""The examples of a page of docs/, as a reader copies them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: their language, "" where none is said, and text."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def blocks_in(page: Path, language: str) -> list[str]:
    """The blocks of one language."""
    return [block for said, block in blocks(page) if said == language]
