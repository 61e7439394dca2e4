"""docs/compatibility.md, from the outcomes of each SDK version and back."""

import re
from collections.abc import Iterator, Mapping
from typing import get_args

from tests.compatibility.outcome import Outcome, Verdict

ABSENT = "-"
MAX_DETAIL = 300
INTRODUCTION = """# Which tinker SDK can do what

`make compatibility` makes this page: it calls every public method of each SDK version, in an
environment of its own, on a running server with a tiny random model, and checks the result. An SDK
before {oldest} is told by its first request which versions are served; one after {newest} is served
too, and gets a warning.

{summary}

A cell says **works**, or **refused**, **broken** (by a fault of that SDK) or **fails** with the
number of the note that holds the message; {absent} stands where that SDK has no such method.
`RestClient` is what `ServiceClient.create_rest_client()` gives in SDKs that do not export it.
"""


def write_table(outcomes: Mapping[str, Mapping[str, Outcome]], oldest_served: str) -> str:
    """The page; `outcomes[version][name]`, the versions newest first."""
    notes: list[str] = []
    parts = [
        INTRODUCTION.format(
            oldest=oldest_served,
            newest=next(iter(outcomes)),
            absent=ABSENT,
            summary="\n".join(f"- {version}: {_summary(of)}" for version, of in outcomes.items()),
        )
    ]
    for section in dict.fromkeys(_section(name) for found in outcomes.values() for name in found):
        parts += [f"## {section}\n", *_rows(section, outcomes, notes), ""]
    if notes:
        parts.append("## Notes\n")
        parts += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(parts).rstrip() + "\n"


def read_table(page: str) -> dict[str, dict[str, str]]:
    """The verdicts of a page: `verdicts[version][name]`, absent methods left out."""
    verdicts: dict[str, dict[str, str]] = {}
    section, versions = "", []
    for line in page.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| | "):
            versions = line.strip("| ").split(" | ")
        elif match := re.fullmatch(r"\| `(.+?)` \| (.+) \|", line):
            name = match[1] if section == "tinker" else f"{section}.{match[1]}"
            for version, cell in zip(versions, match[2].split(" | "), strict=True):
                if cell != ABSENT:
                    verdicts.setdefault(version, {})[name] = re.sub(r" \(\d+\)$", "", cell)
    return verdicts


def _section(name: str) -> str:
    return "tinker" if name.startswith("tinker ") else name.split(".")[0]


def _rows(
    section: str, outcomes: Mapping[str, Mapping[str, Outcome]], notes: list[str]
) -> Iterator[str]:
    """A table of one class, with a column for each version that has it."""
    found = {
        version: {name: outcome for name, outcome in of.items() if _section(name) == section}
        for version, of in outcomes.items()
    }
    found = {version: of for version, of in found.items() if of}
    yield f"| | {' | '.join(found)} |"
    yield "|---" * (len(found) + 1) + "|"
    for name in sorted({name for of in found.values() for name in of}):
        cells = [_cell(of.get(name), notes) for of in found.values()]
        yield f"| `{name.removeprefix(section + '.')}` | {' | '.join(cells)} |"


def _summary(found: Mapping[str, Outcome]) -> str:
    verdicts = [outcome.verdict for outcome in found.values()]
    words = {"works": "work", "fails": "fail", "no probe": "without a probe"}
    counts = [(verdicts.count(v), words.get(v, v)) for v in get_args(Verdict)]
    return f"of {len(verdicts)}, " + ", ".join(f"{n} {word}" for n, word in counts if n)


def _cell(outcome: Outcome | None, notes: list[str]) -> str:
    if outcome is None:
        return ABSENT
    if not outcome.detail:
        return outcome.verdict
    detail = outcome.detail[:MAX_DETAIL].replace("|", "\\|")
    if detail not in notes:
        notes.append(detail)
    return f"{outcome.verdict} ({notes.index(detail) + 1})"
