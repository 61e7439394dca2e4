"""Rows of a user's table, each with its line, so that an error can point at it."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError


@dataclass(frozen=True, slots=True)
class Row:
    """What one line holds, or why it cannot be read."""

    line: int
    values: dict[str, Any] | None
    fault: str | None = None


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv or .parquet file, by its ending."""
    if not path.is_file():
        raise TinsmithError(f"{path} must be a file (config: data.path), but there is none")
    try:
        yield from READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise TinsmithError(
            f"{path} must be UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except json.JSONDecodeError as error:
                yield Row(line, None, f"is not JSON ({error.msg} at column {error.colno})")
                continue
            if isinstance(values, dict):
                yield Row(line, values)
            else:
                yield Row(line, None, "is not a JSON object")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            for values in reader:
                if "" in values:
                    yield Row(reader.line_num, None, "has more cells than the header")
                else:
                    yield Row(reader.line_num, values)
        except csv.Error as error:
            yield Row(reader.line_num, None, f"is not CSV ({error})")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise TinsmithError(f"{path} must be a Parquet file: {error}") from error
    for line, values in enumerate(rows, start=1):
        yield Row(line, values)


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
