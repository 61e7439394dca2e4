"""Samples side by side: what the base and every stage said to the same held-out problem."""

from dataclasses import dataclass
from typing import Any

from tinsmith.report.results import Results, RunResults
from tinsmith.runs import BASE

Row = dict[str, Any]
# How many problems of each fate the page shows.
SHOWN = {"learnt": 6, "kept": 3, "unsolved": 2, "lost": 1}


@dataclass(frozen=True, slots=True)
class Answer:
    """One checkpoint's first sample, and which of all its samples were right."""

    text: str
    is_right: bool
    rights: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A problem, and an answer for the base and for every stage."""

    question: str
    answer: str
    fate: str
    answers: tuple[Answer, ...]


def compare_samples(results: Results) -> tuple[Comparison, ...]:
    """Problems of the best variant's first run: learnt first, then kept, unsolved and lost."""
    run = results.best.runs[0]
    by_fate: dict[str, list[Comparison]] = {fate: [] for fate in SHOWN}
    grouped = {stage: _by_problem(run, stage) for stage in results.evaluated}
    for problem in grouped[BASE]:
        rows = [grouped[stage][problem] for stage in results.evaluated]
        fate = _fate(rows[0], rows[-1])
        if len(by_fate[fate]) < SHOWN[fate]:
            first = rows[0][0]
            answers = tuple(_answer(row) for row in rows)
            by_fate[fate].append(Comparison(first["question"], first["answer"], fate, answers))
    return tuple(comparison for found in by_fate.values() for comparison in found)


def _by_problem(run: RunResults, stage: str) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in run.samples[stage]:
        grouped.setdefault(row["problem_id"], []).append(row)
    return grouped


def _fate(before: list[Row], after: list[Row]) -> str:
    was_right, is_right = before[0]["is_right"], after[0]["is_right"]
    if is_right:
        return "kept" if was_right else "learnt"
    return "lost" if was_right else "unsolved"


def _answer(rows: list[Row]) -> Answer:
    rights = tuple(bool(row["is_right"]) for row in rows)
    return Answer(rows[0]["completion"], rights[0], rights)
