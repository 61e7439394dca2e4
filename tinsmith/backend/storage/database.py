"""The SQLite file of a store: its schema, older schemas brought up to date, and its lock."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tinsmith.errors import TinsmithError

VERSION = 2  # of the schema; raised with every change of it
# What brings a store of one version to the next. A new store goes through all of them.
CHANGES: dict[int, Sequence[str]] = {
    0: (
        """CREATE TABLE sessions (
            session_id TEXT PRIMARY KEY, created TEXT NOT NULL, details TEXT NOT NULL,
            ended TEXT)""",
        """CREATE TABLE runs (
            model_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL,
            lora TEXT NOT NULL, user_metadata TEXT, last_request TEXT NOT NULL)""",
        """CREATE TABLE checkpoints (
            path TEXT PRIMARY KEY, model_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
            folder TEXT NOT NULL, time TEXT NOT NULL, size_bytes INTEGER NOT NULL, expires TEXT,
            user_metadata TEXT)""",
        """CREATE TABLE samplers (
            sampler_id TEXT PRIMARY KEY, base_model TEXT NOT NULL, model_path TEXT)""",
    ),
    1: (
        "ALTER TABLE samplers ADD COLUMN folder TEXT",
        "ALTER TABLE checkpoints ADD COLUMN public INTEGER NOT NULL DEFAULT 0",
        # Folders that hold no checkpoint: one is being written there, or was removed.
        "CREATE TABLE leftovers (folder TEXT PRIMARY KEY)",
        "CREATE INDEX checkpoints_by_run ON checkpoints (model_id, time)",
        "CREATE INDEX runs_by_session ON runs (session_id)",
    ),
}


class Database:
    """One connection, which several threads share; other servers may have theirs."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            path, timeout=60, check_same_thread=False, isolation_level=None
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        with self.transaction():
            self._bring_up_to_date(path.parent)

    def close(self) -> None:
        self._connection.close()

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def write(self, sql: str, *values: Any) -> int:
        """The number of rows that were changed."""
        with self._lock:
            return self._connection.execute(sql, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written in this block is written together, or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _bring_up_to_date(self, directory: Path) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        is_foreign = not version and self.rows("SELECT 1 FROM sqlite_master")
        if version > VERSION or is_foreign:
            raise TinsmithError(
                f"{directory} was written by another version of Tinsmith (schema {version}, "
                f"this one reads {VERSION}); choose another --store or use that version"
            )
        for step in range(version, VERSION):
            for statement in CHANGES[step]:
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {VERSION}")


def now(later_s: float = 0.0) -> str:
    """The time in `later_s` seconds, as the store's columns hold it: they sort as text."""
    return as_text(datetime.now(UTC) + timedelta(seconds=later_s))


def as_text(moment: datetime) -> str:
    """A moment as the store's columns hold it, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
