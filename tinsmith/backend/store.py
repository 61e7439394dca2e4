"""What outlives a server: sessions, runs and checkpoints, in SQLite and safetensors."""

import json
import re
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tinsmith.backend.adapter import LoraSettings
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
VERSION = 2  # of the schema; raised with every change of it
SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY, created TEXT NOT NULL, details TEXT NOT NULL, ended TEXT);
CREATE TABLE IF NOT EXISTS runs (
    model_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, base_model TEXT NOT NULL,
    lora TEXT NOT NULL, user_metadata TEXT, last_request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoints (
    path TEXT PRIMARY KEY, model_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    folder TEXT NOT NULL, time TEXT NOT NULL, size_bytes INTEGER NOT NULL, expires TEXT,
    user_metadata TEXT);
CREATE TABLE IF NOT EXISTS samplers (
    sampler_id TEXT PRIMARY KEY, base_model TEXT NOT NULL, model_path TEXT, folder TEXT);
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A training run as it is remembered."""

    model_id: str
    base_model: str
    lora: LoraSettings
    user_metadata: Mapping[str, Any] | None
    last_request: str


@dataclass(frozen=True, slots=True)
class Sampler:
    """What a sampling session samples from: the base model, or the checkpoint at `model_path`
    as it lay in `folder` when the session was made."""

    base_model: str
    model_path: str | None = None
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is wholly on the disk, in `folder` of the store."""

    path: str
    model_id: str
    kind: str
    name: str
    folder: str
    time: str
    size_bytes: int
    expires: str | None
    user_metadata: Mapping[str, Any] | None


class Store:
    """One folder; safe for several threads and for several servers at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            directory / "tinsmith.sqlite", timeout=60, check_same_thread=False, isolation_level=None
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._check_version()
        self._db.executescript(SCHEMA)
        self.remove_expired()

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        is_empty = not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if version != VERSION and not is_empty:
            raise TinsmithError(
                f"{self.directory} was written by another version of Tinsmith (schema {version}, "
                f"this one reads {VERSION}); choose another --store or use that version"
            )

    def close(self) -> None:
        self._db.close()

    # Sessions

    def add_session(self, session_id: str, details: Mapping[str, Any]) -> None:
        self._write(
            "INSERT INTO sessions VALUES (?, ?, ?, NULL)", session_id, _now(), json.dumps(details)
        )

    def has_session(self, session_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM sessions WHERE session_id = ?", session_id))

    def end_session(self, session_id: str, reason: Mapping[str, Any]) -> None:
        self._write(
            "UPDATE sessions SET ended = ? WHERE session_id = ?", json.dumps(reason), session_id
        )

    # Samplers

    def add_sampler(self, sampler_id: str, sampler: Sampler) -> None:
        values = (sampler.base_model, sampler.model_path, sampler.folder)
        self._write("INSERT OR REPLACE INTO samplers VALUES (?, ?, ?, ?)", sampler_id, *values)

    def sampler(self, sampler_id: str) -> Sampler | None:
        rows = self._rows("SELECT * FROM samplers WHERE sampler_id = ?", sampler_id)
        return Sampler(*tuple(rows[0])[1:]) if rows else None

    # Runs

    def add_run(
        self, model_id: str, session_id: str, base_model: str, lora: LoraSettings, metadata: Any
    ) -> None:
        values = json.dumps(asdict(lora))
        self._write(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)",
            *(model_id, session_id, base_model, values, _dump(metadata), _now()),
        )

    def touch_run(self, model_id: str) -> None:
        self._write("UPDATE runs SET last_request = ? WHERE model_id = ?", _now(), model_id)

    def run(self, model_id: str) -> Run | None:
        rows = self._rows("SELECT * FROM runs WHERE model_id = ?", model_id)
        return _run(rows[0]) if rows else None

    def runs(self) -> list[Run]:
        """All runs, the one used last first."""
        return [_run(row) for row in self._rows("SELECT * FROM runs ORDER BY last_request DESC")]

    # Checkpoints

    def save(
        self,
        model_id: str,
        kind: str,
        name: str,
        write: Callable[[Path], None],
        *,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Let `write` fill a new folder, then record it in one step: whenever this is cut off, the
        name stands for the whole old checkpoint, the whole new one, or none."""
        check_name(name)
        assert kind in KINDS
        self.remove_expired()
        path = f"tinker://{model_id}/{kind}/{name}"
        earlier = self.checkpoint(path)
        if earlier is not None and not overwrite:
            raise TinsmithError(
                f"checkpoint {path} exists already; choose another name or pass overwrite=True"
            )
        place = f"runs/{model_id.replace(':', '_')}/{kind}/{name}-{secrets.token_hex(4)}"
        with new_directory(self.directory / place) as folder:
            write(folder)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        expires = None if ttl_seconds is None else _now(timedelta(seconds=ttl_seconds))
        row = (path, model_id, kind, name, place, _now(), size, expires, _dump(user_metadata))
        self._write("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
        if earlier is not None:
            shutil.rmtree(self.folder(earlier), ignore_errors=True)
        return Checkpoint(*row[:-1], user_metadata)

    def checkpoint(self, path: str) -> Checkpoint | None:
        """The checkpoint at a path, unless its time to live has passed."""
        rows = self._rows(
            "SELECT * FROM checkpoints WHERE path = ? AND (expires IS NULL OR expires >= ?)",
            *(path, _now()),
        )
        return _checkpoint(rows[0]) if rows else None

    def checkpoints(self, model_id: str | None = None) -> list[Checkpoint]:
        """The checkpoints of a run, or of all runs; newest first."""
        self.remove_expired()
        rows = self._rows(
            "SELECT * FROM checkpoints WHERE ?1 IS NULL OR model_id = ?1 ORDER BY time DESC",
            model_id,
        )
        return [_checkpoint(row) for row in rows]

    def folder(self, checkpoint: Checkpoint) -> Path:
        """Where a checkpoint's files lie."""
        return self.directory / checkpoint.folder

    def remove_expired(self) -> None:
        """Remove the checkpoints whose time to live has passed, and nothing else."""
        rows = self._rows("SELECT * FROM checkpoints WHERE expires < ?", _now())
        for checkpoint in map(_checkpoint, rows):
            self._write("DELETE FROM checkpoints WHERE folder = ?", checkpoint.folder)
            shutil.rmtree(self.folder(checkpoint), ignore_errors=True)

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _write(self, sql: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(sql, values)


def check_name(name: str) -> None:
    """A checkpoint's name becomes a folder and a segment of its tinker:// path."""
    if not NAME.fullmatch(name):
        raise TinsmithError(
            f"checkpoint name {name!r}: must be 1 to 200 letters, digits, '.', '_' or '-', "
            "and start with a letter or digit"
        )


def _now(later: timedelta = timedelta(0)) -> str:
    return (datetime.now(UTC) + later).isoformat(timespec="microseconds")


def _dump(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _load(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _run(row: sqlite3.Row) -> Run:
    return Run(
        row["model_id"],
        row["base_model"],
        LoraSettings(**json.loads(row["lora"])),
        _load(row["user_metadata"]),
        row["last_request"],
    )


def _checkpoint(row: sqlite3.Row) -> Checkpoint:
    values = dict(row)
    return Checkpoint(**{**values, "user_metadata": _load(values["user_metadata"])})
