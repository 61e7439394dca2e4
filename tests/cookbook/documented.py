"""`python -m tests.cookbook.documented FOLDER [WORD]`: run the commands of docs/cookbook.md.

To the letter, in the order of the page, in a folder of `tests.cookbook.hub`; all of them, or those
that hold the word. It takes some ten minutes and is no part of the suite.
"""

import re
import sys
import time
from pathlib import Path

from tests.cookbook.recipes import end_of
from tests.pages import DOCS, blocks_in

PAGE = DOCS / "cookbook.md"
TIMEOUT_S = 900


def read_page() -> tuple[str, list[str]]:
    """The page's definition of `recipe`, and the commands of its tables."""
    text = PAGE.read_text(encoding="utf-8")
    (definition,) = (block for block in blocks_in(PAGE, "") if block.startswith("export "))
    return definition, re.findall(r"\| `((?:recipe|tinsmith run) [^`]+)` \|$", text, re.MULTILINE)


def named_recipes() -> set[str]:
    """What the first column of a table names, without the package's own name."""
    text = PAGE.read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z_.]+)`", cell)}


def run_command(definition: str, command: str, folder: Path) -> bool:
    """Whether it ended well; if not, the last of what it said is printed."""
    start = time.monotonic()
    ended = end_of(["bash", "-c", f"{definition}\n{command}"], folder, None, TIMEOUT_S)
    verdict = "ran" if ended.returncode == 0 else f"failed ({ended.returncode})"
    print(f"{verdict} in {time.monotonic() - start:.0f} s: {command}", flush=True)
    if ended.returncode != 0:
        print(ended.stdout[-3000:], flush=True)
    return ended.returncode == 0


def main(folder: Path, word: str = "") -> int:
    definition, commands = read_page()
    chosen = [command for command in commands if word in command]
    return sum(not run_command(definition, command, folder) for command in chosen)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
