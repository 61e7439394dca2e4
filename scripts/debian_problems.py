"""Problems from what Debian packages hold: real English on any Debian or Ubuntu machine.

    python -m scripts.debian_problems summary summary.jsonl
    python -m scripts.debian_problems constrained constrained.jsonl
    python -m scripts.debian_problems definition definition.jsonl

`summary`: a package's long description and its one-line synopsis; `constrained`: a description with
instructions that a program can check; `definition`: a noun's definition in WordNet (the package
wordnet-base), the noun, and four to choose from.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError
from tinsmith.files import write_text

STATUS, NOUNS = Path("/var/lib/dpkg/status"), Path("/usr/share/wordnet/data.noun")
NUM_CHOICES = 4
WORD = re.compile(r"[a-z]{5,}")
SYNSET = re.compile(r"[0-9]{8} [0-9]{2} n [0-9a-f]{2} (\S+) .*\| (.*)")  # wndb(5WN)
EXAMPLES = re.compile(r'[;:,]? *"')
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Package:
    """A package's name, what it is in one line, and its description."""

    name: str
    synopsis: str
    description: str


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun, or a phrase that stands for one, and what it means."""

    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: where its text lies, how that is read, and what is asked about it."""

    source: Path
    read: Callable[[Path, int], list[Any]]
    ask: Callable[[list[Any], random.Random], Iterator[Row]]


def main() -> int:
    """Parse the command line and write one problem a line; returns the exit code."""
    args = _parse()
    kind, rng = KINDS[args.kind], random.Random(args.seed)
    try:
        found = kind.read(args.source or kind.source, args.max_characters)
    except TinsmithError as error:
        print(f"debian_problems: {error}", file=sys.stderr)
        return 2
    rows = list(kind.ask(found, rng))
    drawn = range(len(rows))
    if args.num_problems is not None and args.num_problems < len(rows):
        drawn = rng.sample(drawn, args.num_problems)
    _write(args.out, [rows[index] for index in drawn])
    if args.conversations is not None:
        chosen = {*drawn}
        others = [row for index, row in enumerate(rows) if index not in chosen]
        _write(args.conversations, [_conversation(row) for row in others])
    return 0


def _write(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


def _conversation(row: Row) -> Row:
    """A problem and its answer as a chat, which is what recipes of the tinker-cookbook train on."""
    turns = (("user", row["question"]), ("assistant", row["answer"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=sorted(KINDS))
    add("out", type=Path, help="the .jsonl file to write")
    add("--source", type=Path, help="packages as dpkg keeps them or `apt-cache show` prints them"
        f" (default: {STATUS}), or the nouns of WordNet (default: {NOUNS})")  # fmt: skip
    add("--max-characters", type=int, default=600, help="of a description, which is cut at a"
        " sentence's end; a longer definition is left out (default: %(default)s)")  # fmt: skip
    add("--num-problems", type=int, help="draw as many by the seed (default: all)")
    add("--conversations", type=Path, metavar="FILE", help="write the problems that were not drawn"
        " to FILE, as chats to train on")  # fmt: skip
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.conversations and (args.num_problems is None or args.kind == "constrained"):
        parser.error("--conversations needs --num-problems, and a kind whose problems have answers")
    return args


def read_packages(path: Path, max_characters: int) -> list[Package]:
    """The packages that have a long description, each description once."""
    found: dict[str, Package] = {}
    for paragraph in _text(path, "a list of packages, as dpkg keeps it").split("\n\n"):
        name = re.search(r"^Package: (.+)$", paragraph, re.MULTILINE)
        said = re.search(r"^Description(?:-en)?: (.+)\n((?: .*\n?)+)", paragraph, re.MULTILINE)
        if name and said:
            description = _shortened(said[2], max_characters)
            if description:
                found.setdefault(description, Package(name[1], said[1].strip(), description))
    if not found:
        raise TinsmithError(f"{path} must describe packages, as dpkg keeps them, got none")
    return list(found.values())


def read_nouns(path: Path, max_characters: int) -> list[Noun]:
    """The first noun of each synset, with its definition; the examples behind it are left out."""
    found = []
    for line in _text(path, "WordNet's data.noun (apt install wordnet-base)").splitlines():
        if synset := SYNSET.fullmatch(line):
            definition = EXAMPLES.split(synset[2])[0].strip()
            if 0 < len(definition) <= max_characters:
                found.append(Noun(synset[1].replace("_", " "), definition))
    if len(found) < NUM_CHOICES:
        raise TinsmithError(
            f"{path} must define at least {NUM_CHOICES} nouns, as WordNet's data.noun does, got"
            f" {len(found)}"
        )
    return found


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TinsmithError(f"{path} must be {what}: {error}") from None


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


def definitions(nouns: Sequence[Noun], rng: random.Random) -> Iterator[Row]:
    """Which noun has this definition? The choices, one of which it is, may be shown or not."""
    for noun in nouns:
        names = dict.fromkeys(choice.name for choice in (noun, *rng.sample(nouns, NUM_CHOICES)))
        shown = list(names)[:NUM_CHOICES]
        rng.shuffle(shown)
        question = f"Which noun means: {noun.definition}?"
        yield {"question": question, "answer": noun.name, "choices": shown}


KINDS: Mapping[str, Kind] = {
    "summary": Kind(STATUS, read_packages, summaries),
    "constrained": Kind(STATUS, read_packages, constrained),
    "definition": Kind(NOUNS, read_nouns, definitions),
}


if __name__ == "__main__":
    sys.exit(main())
