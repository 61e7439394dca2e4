"""docs/compatibility.md, from the outcomes of each SDK version and back."""

import re
from collections.abc import Mapping, Sequence

from tests.compatibility.outcome import Outcome

ABSENT = "–"
MAX_DETAIL = 300
INTRODUCTION = """# Which tinker SDK can do what

`make compatibility` makes this page: it calls every public method of each SDK version, in an environment of
its own, on a running server with a tiny random model, and checks the result. An SDK before {oldest} is told by
its first request which versions are served; one after {newest} is served too, and gets a warning.

{summary}

A cell says **works**, **refused** with the number of the note that holds the message, **fails** with the error, or {absent}
where that SDK has no such method. `RestClient` before 0.35 is what `ServiceClient.create_rest_client()` gives.
"""


def write_table(outcomes: Mapping[str, Mapping[str, Outcome]], oldest_served: str) -> str:
    """The page; `outcomes[version][name]`, the versions newest first."""
    versions = list(outcomes)
    notes: list[str] = []
    parts = [
        INTRODUCTION.format(
            oldest=oldest_served,
            newest=versions[0],
            absent=ABSENT,
            summary="\n".join(f"- {v}: {_summary(outcomes[v])}" for v in versions),
        )
    ]
    for section, names in _sections(outcomes).items():
        parts.append(f"## {section}\n")
        parts.append(f"| | {' | '.join(versions)} |")
        parts.append("|---" * (len(versions) + 1) + "|")
        for name in names:
            cells = [_cell(outcomes[version].get(name), notes) for version in versions]
            parts.append(f"| `{name.removeprefix(section + '.')}` | {' | '.join(cells)} |")
        parts.append("")
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


def _sections(outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, list[str]]:
    """Names by class, those of newer versions first."""
    sections: dict[str, list[str]] = {}
    for found in outcomes.values():
        for name in found:
            section = "tinker" if name.startswith("tinker ") else name.split(".")[0]
            if name not in sections.setdefault(section, []):
                sections[section].append(name)
    return {section: sorted(names) for section, names in sections.items()}


def _summary(found: Mapping[str, Outcome]) -> str:
    verdicts: Sequence[str] = [outcome.verdict for outcome in found.values()]
    words = {"works": "work", "refused": "refused", "fails": "fail", "no probe": "without a probe"}
    counts = [(verdicts.count(verdict), word) for verdict, word in words.items()]
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
