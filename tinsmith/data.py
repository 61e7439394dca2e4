"""Problems from a generator, a file or the hub, split into train and held-out by a seeded hash."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinsmith.arithmetic import draw_arithmetic
from tinsmith.config import ArithmeticData, Data, FileData, HubData, TableData
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json, write_text
from tinsmith.hub import load_hub_dataset
from tinsmith.tables import Row, read_table

MAX_NAMED_ROWS = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """One line of train.jsonl or heldout.jsonl; the id is a hash of the question and of what the
    task reads besides."""

    id: str
    question: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)


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
    have_answers = not isinstance(data, TableData) or data.answer_field is not None
    problems = _distinct(_problems(data, counted), counted, have_answers=have_answers)
    if data.held_out >= len(problems):
        raise TinsmithError(
            f"{counted.source}: data.held_out must be below the number of distinct problems,"
            f" {len(problems)}, got {data.held_out} (config: data.held_out)"
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
    by_hash = sorted(
        problems, key=lambda problem: (_digest(f"{seed}:{problem.question}"), problem.id)
    )
    heldout = by_hash[:held_out]
    heldout_ids = {problem.id for problem in heldout}
    return [problem for problem in problems if problem.id not in heldout_ids], heldout


def _source(data: Data) -> str:
    if isinstance(data, FileData):
        return data.path
    if isinstance(data, HubData):
        return f"{data.name}@{data.revision[:8]} ({data.split})"
    return "arithmetic"


@dataclass(frozen=True, slots=True)
class _Line:
    """What a row says, and where it stands."""

    number: int
    question: str
    answer: str
    extra: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What makes two rows the same problem."""
        return self.question + (_dump(self.extra) if self.extra else "")


def _problems(data: Data, stats: DataStats) -> list[_Line]:
    """What every row says."""
    if isinstance(data, ArithmeticData):
        drawn = draw_arithmetic(data.num_problems, data.digits, data.operations, data.split_seed)
        rows = [Row(i, {"question": q, "answer": a}) for i, (q, a) in enumerate(drawn, start=1)]
        return _checked(rows, TableData(held_out=data.held_out), stats)
    if isinstance(data, FileData):
        rows = read_table(Path(data.path))
    else:
        values = load_hub_dataset(data)
        rows = (Row(line, row) for line, row in enumerate(values, start=1))
    return _checked(rows, data, stats)


def _checked(rows: Iterable[Row], fields: TableData, stats: DataStats) -> list[_Line]:
    """What the rows say; every row that lacks a field is named before any problem is used."""
    lines: list[_Line] = []
    faults: list[str] = []
    for row in rows:
        stats.num_rows += 1
        fault = row.fault or next(_faults(row, fields), None)
        if fault:
            faults.append(f"line {row.line} {fault}")
        else:
            lines.append(_line(row, fields))
    if faults:
        more = len(faults) - MAX_NAMED_ROWS
        said = "; ".join(faults[:MAX_NAMED_ROWS]) + (f"; and {more} more" if more > 0 else "")
        wanted = "a question" if fields.answer_field is None else "a question and an answer"
        raise TinsmithError(f"{stats.source}: every row must hold {wanted}: {said}")
    if not lines:
        raise TinsmithError(f"{stats.source} must hold at least one row, but it is empty")
    return lines


def _line(row: Row, fields: TableData) -> _Line:
    values = row.values or {}
    answer = "" if fields.answer_field is None else str(values[fields.answer_field]).strip()
    extra = {name: values[name] for name in fields.extra_fields}
    return _Line(row.line, str(values[fields.question_field]).strip(), answer, extra)


def _faults(row: Row, fields: TableData) -> Iterator[str]:
    values = row.values or {}
    texts = [name for name in (fields.question_field, fields.answer_field) if name is not None]
    for name in (*texts, *fields.extra_fields):
        if name not in values:
            known = ", ".join(map(repr, values)) or "none"
            yield f"has no field {name!r} (its fields: {known})"
    for name in texts:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            yield f"has {name} {value!r}, which must be text or a number"
    for name in fields.extra_fields:
        try:
            _dump(values[name])
        except (TypeError, ValueError):
            yield f"has {name} {values[name]!r}, which must be what JSON knows"


def _distinct(lines: Iterable[_Line], stats: DataStats, *, have_answers: bool) -> list[ProblemRow]:
    """One row a problem: repeats are dropped, empty and contradictory rows rejected."""
    seen: dict[str, _Line] = {}
    for line in lines:
        first = seen.get(line.key)
        if not line.question or (have_answers and not line.answer):
            empty = "answer" if line.question else "question"
            stats.rejected.append({"line": line.number, "why": f"empty {empty}"})
        elif first is None:
            seen[line.key] = line
        elif first.answer == line.answer:
            stats.duplicates.append({"line": line.number, "first_line": first.number})
        else:
            why = f"another answer than line {first.number}, which has the same question"
            stats.rejected.append({"line": line.number, "why": why})
    return [
        ProblemRow(_digest(key)[:16], line.question, line.answer, line.extra)
        for key, line in seen.items()
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


def _dump(values: Any) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
