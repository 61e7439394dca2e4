"""Problems from the descriptions of Debian packages: real English on any Debian or Ubuntu machine.

    python -m scripts.debian_problems summary summary.jsonl
    python -m scripts.debian_problems choice choice.jsonl
    python -m scripts.debian_problems constrained constrained.jsonl

`summary`: the long description and its one-line synopsis; `choice`: a synopsis and four packages,
of which one is meant; `constrained`: a description with instructions that a program can check.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError
from tinsmith.files import write_text

STATUS = Path("/var/lib/dpkg/status")
NUM_CHOICES = 4
LETTERS = "ABCD"
WORD = re.compile(r"[a-z]{5,}")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Package:
    """A package's name, what it is in one line, and its description."""

    name: str
    synopsis: str
    description: str


def main() -> int:
    """Parse the command line and write one problem a line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    parser.add_argument("--packages", type=Path, default=STATUS, help="as dpkg keeps them, or as"
                        " `apt-cache show` prints them (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-characters", type=int, default=600, help="of a description, which"
                        " is cut at a sentence's end (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        packages = read_packages(args.packages, args.max_characters)
    except TinsmithError as error:
        print(f"debian_problems: {error}", file=sys.stderr)
        return 2
    rows = KINDS[args.kind](packages, random.Random(args.seed))
    lines = [json.dumps(row) + "\n" for row in rows]
    write_text(args.out, "".join(lines))
    print(f"{args.out}: {len(lines)} problems")
    return 0


def read_packages(path: Path, max_characters: int) -> list[Package]:
    """The packages that have a long description, each description once."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TinsmithError(
            f"{path} must be a list of packages, as dpkg keeps it: {error}"
        ) from None
    found: dict[str, Package] = {}
    for paragraph in text.split("\n\n"):
        name = re.search(r"^Package: (.+)$", paragraph, re.MULTILINE)
        said = re.search(r"^Description(?:-en)?: (.+)\n((?: .*\n?)+)", paragraph, re.MULTILINE)
        if name and said:
            description = _shortened(said[2], max_characters)
            if description:
                found.setdefault(description, Package(name[1], said[1].strip(), description))
    if len(found) < NUM_CHOICES:
        raise TinsmithError(
            f"{path} must describe at least {NUM_CHOICES} packages, got {len(found)}"
        )
    return list(found.values())


def _shortened(lines: str, max_characters: int) -> str:
    """The description as one paragraph, up to the end of the last sentence that fits."""
    words = " ".join(line.strip() for line in lines.splitlines() if line.strip() != ".")
    if len(words) <= max_characters:
        return words
    end = words.rfind(". ", 0, max_characters)
    return words[: end + 1]


def summaries(packages: Sequence[Package], rng: random.Random) -> Iterator[Row]:
    """Say in one line what a package is."""
    for package in packages:
        yield {"question": package.description, "answer": package.synopsis}


def choices(packages: Sequence[Package], rng: random.Random) -> Iterator[Row]:
    """Which of four packages is meant by a synopsis?"""
    names = sorted({package.name for package in packages})
    for package in packages:
        others = rng.sample([name for name in names if name != package.name], NUM_CHOICES - 1)
        shown = rng.sample([package.name, *others], NUM_CHOICES)
        question = f"Which Debian package is this: {package.synopsis}?"
        answer = LETTERS[shown.index(package.name)]
        yield {"question": question, "choices": shown, "answer": answer}


def constrained(packages: Sequence[Package], rng: random.Random) -> Iterator[Row]:
    """Say what a package is, under one to three instructions; there is no reference answer."""
    for package in packages:
        words = sorted(set(WORD.findall(package.description)))
        if len(words) < 2:
            continue
        keyword, forbidden = rng.sample(words, 2)
        possible = {
            "max_words": rng.choice([6, 8, 12]),
            "keywords": [keyword],
            "forbidden": [forbidden],
            "format": rng.choice(["one_line", "lowercase", "bullets"]),
        }
        chosen = rng.sample(sorted(possible), rng.randint(1, 3))
        question = f"What does this package do? {package.description}"
        yield {"question": question, "constraints": {name: possible[name] for name in chosen}}


KINDS = {"summary": summaries, "choice": choices, "constrained": constrained}


if __name__ == "__main__":
    sys.exit(main())
