"""Problems from a generator, a file or the hub, split into train and held-out by a seeded hash."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinsmith.arithmetic import draw_arithmetic
from tinsmith.config import ArithmeticData, Data, FileData, HubData
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json, write_text
from tinsmith.hub import load_hub_dataset
from tinsmith.tables import Row, read_table

MAX_NAMED_ROWS = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """One line of train.jsonl or heldout.jsonl; the id is a hash of the question."""

    id: str
    question: str
    answer: str


@dataclass(slots=True)
class DataStats:
    """What was read, and which rows were left out and why."""

    source: str
    num_rows: int = 0
    num_problems: int = 0
    num_train: int = 0
    num_heldout: int = 0
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


def prepare_data(data: Data, train: Path, heldout: Path, stats: Path) -> None:
    """Write the two splits, one problem a line, and the counts beside them."""
    counted = DataStats(_source(data))
    problems = _distinct(_problems(data, counted), counted)
    if data.held_out >= len(problems):
        raise TinsmithError(
            f"{counted.source}: data.held_out must be below the number of distinct problems,"
            f" {len(problems)}, got {data.held_out} (config.yaml: data.held_out)"
        )
    train_problems, heldout_problems = split(problems, data.held_out, data.split_seed)
    counted.num_problems = len(problems)
    counted.num_train, counted.num_heldout = len(train_problems), len(heldout_problems)
    write_text(train, _jsonl(train_problems))
    write_text(heldout, _jsonl(heldout_problems))
    write_json(stats, asdict(counted))
    _report(counted)


def split(
    problems: list[ProblemRow], held_out: int, seed: int
) -> tuple[list[ProblemRow], list[ProblemRow]]:
    """Hold out the problems whose seeded hash is lowest: adding rows moves few others.

    Held-out problems stand in the order of their hash, so that the first n are a random n.
    """
    by_hash = sorted(problems, key=lambda problem: _digest(f"{seed}:{problem.question}"))
    heldout = by_hash[:held_out]
    heldout_ids = {problem.id for problem in heldout}
    return [problem for problem in problems if problem.id not in heldout_ids], heldout


def _source(data: Data) -> str:
    if isinstance(data, FileData):
        return data.path
    if isinstance(data, HubData):
        return f"{data.name}@{data.revision[:8]} ({data.split})"
    return "arithmetic"


def _problems(data: Data, stats: DataStats) -> Iterator[tuple[int, str, str]]:
    """Line, question and answer of every row."""
    if isinstance(data, ArithmeticData):
        drawn = draw_arithmetic(data.num_problems, data.digits, data.operations, data.split_seed)
        rows = [Row(i, {"question": q, "answer": a}) for i, (q, a) in enumerate(drawn, start=1)]
        return _checked(rows, "question", "answer", stats)
    if isinstance(data, FileData):
        rows = read_table(Path(data.path))
    else:
        values = load_hub_dataset(data)
        rows = (Row(line, row) for line, row in enumerate(values, start=1))
    return _checked(rows, data.question_field, data.answer_field, stats)


def _checked(
    rows: Iterable[Row], question_field: str, answer_field: str, stats: DataStats
) -> Iterator[tuple[int, str, str]]:
    """The rows' texts; every row that has none is named before any problem is used."""
    texts: list[tuple[int, str, str]] = []
    faults: list[str] = []
    for row in rows:
        stats.num_rows += 1
        question, answer = _text(row, question_field), _text(row, answer_field)
        fault = row.fault or _fault(row, question_field) or _fault(row, answer_field)
        if fault:
            faults.append(f"line {row.line} {fault}")
        else:
            texts.append((row.line, question, answer))
    if faults:
        more = len(faults) - MAX_NAMED_ROWS
        said = "; ".join(faults[:MAX_NAMED_ROWS]) + (f"; and {more} more" if more > 0 else "")
        raise TinsmithError(f"{stats.source}: every row must hold a question and an answer: {said}")
    if not texts:
        raise TinsmithError(f"{stats.source} must hold at least one row, but it is empty")
    yield from texts


def _text(row: Row, name: str) -> str:
    value = (row.values or {}).get(name)
    return str(value).strip()


def _fault(row: Row, name: str) -> str | None:
    values = row.values or {}
    if name not in values:
        known = ", ".join(map(repr, values)) or "none"
        return f"has no field {name!r} (its fields: {known})"
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return f"has {name} {value!r}, which must be text or a number"
    return None


def _distinct(problems: Iterable[tuple[int, str, str]], stats: DataStats) -> list[ProblemRow]:
    """One row a question: repeats are dropped, empty and contradictory rows rejected."""
    seen: dict[str, tuple[int, str]] = {}
    for line, question, answer in problems:
        if not question or not answer:
            empty = "answer" if question else "question"
            stats.rejected.append({"line": line, "why": f"empty {empty}"})
        elif question not in seen:
            seen[question] = (line, answer)
        elif seen[question][1] == answer:
            stats.duplicates.append({"line": line, "first_line": seen[question][0]})
        else:
            why = f"another answer than line {seen[question][0]}, which has the same question"
            stats.rejected.append({"line": line, "why": why})
    return [
        ProblemRow(_digest(question)[:16], question, answer)
        for question, (_, answer) in seen.items()
    ]


def _report(stats: DataStats) -> None:
    logger.info(
        "%s: %d rows, %d problems: %d to train on, %d held out; %d duplicates, %d rejected",
        stats.source,
        stats.num_rows,
        stats.num_problems,
        stats.num_train,
        stats.num_heldout,
        len(stats.duplicates),
        len(stats.rejected),
    )
    for row in stats.rejected:
        logger.warning("%s: line %d rejected: %s", stats.source, row["line"], row["why"])


def _jsonl(problems: list[ProblemRow]) -> str:
    return "".join(json.dumps(asdict(problem)) + "\n" for problem in problems)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
