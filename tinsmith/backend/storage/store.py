"""What outlives a server: sessions, runs and checkpoints, in SQLite and safetensors."""

import fcntl
import json
import logging
import math
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.storage.database import Database, now
from tinsmith.backend.storage.records import (
    KINDS,
    Checkpoint,
    Run,
    Sampler,
    checkpoint_of,
    dump,
    run_of,
)
from tinsmith.backend.storage.session_store import SessionStore
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
TOUCH_PERIOD_S = 1.0
ALIVE = "expires IS NULL OR expires >= ?"
log = logging.getLogger(__name__)


class Store:
    """One folder; safe for several threads and for several servers at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._db = Database(directory / "tinsmith.sqlite")
        self.sessions = SessionStore(self._db)
        self._touched: dict[str, float] = {}  # model id -> when touch_run wrote last (monotonic)
        self._presence = (directory / "servers.lock").open("a")
        self._sweep()
        self.remove_expired()

    def close(self) -> None:
        self._db.close()
        self._presence.close()

    # Samplers

    def add_sampler(self, sampler_id: str, sampler: Sampler) -> None:
        values = (sampler.base_model, sampler.model_path, sampler.folder)
        self._db.write(
            "INSERT OR REPLACE INTO samplers (sampler_id, base_model, model_path, folder) "
            "VALUES (?, ?, ?, ?)",
            *(sampler_id, *values),
        )

    def sampler(self, sampler_id: str) -> Sampler | None:
        rows = self._db.rows(
            "SELECT base_model, model_path, folder FROM samplers WHERE sampler_id = ?", sampler_id
        )
        return Sampler(*rows[0]) if rows else None

    # Runs

    def add_run(
        self, model_id: str, session_id: str, base_model: str, lora: LoraSettings, metadata: Any
    ) -> None:
        """Remember a new run; one of this id that is there already stays as it is."""
        self._db.write(
            "INSERT OR IGNORE INTO runs (model_id, session_id, base_model, lora, user_metadata, "
            "last_request) VALUES (?, ?, ?, ?, ?, ?)",
            *(model_id, session_id, base_model, json.dumps(asdict(lora)), dump(metadata), now()),
        )

    def touch_run(self, model_id: str) -> None:
        """Note that a run is in use, to a second: writing costs more than some requests."""
        if time.monotonic() - self._touched.get(model_id, -math.inf) < TOUCH_PERIOD_S:
            return
        self._touched[model_id] = time.monotonic()
        self._db.write("UPDATE runs SET last_request = ? WHERE model_id = ?", now(), model_id)

    def run(self, model_id: str) -> Run | None:
        rows = self._db.rows("SELECT * FROM runs WHERE model_id = ?", model_id)
        return run_of(rows[0]) if rows else None

    def runs(self, limit: int, offset: int, project_id: str | None = None) -> tuple[list[Run], int]:
        """A page of all runs, or of those whose session carries a project's id, the one used last
        first; and how many there are."""
        chosen = (
            "FROM runs JOIN sessions USING (session_id) WHERE ?1 IS NULL "
            "OR json_extract(details, '$.project_id') = ?1"
        )
        rows = self._db.rows(
            f"SELECT runs.* {chosen} ORDER BY last_request DESC, model_id LIMIT ?2 OFFSET ?3",
            *(project_id, limit, offset),
        )
        [(total,)] = self._db.rows(f"SELECT count(*) {chosen}", project_id)
        return [run_of(row) for row in rows], total

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
        path = f"tinker://{model_id}/{kind}/{name}"
        if self.checkpoint(path) is not None and not overwrite:
            raise TinsmithError(
                f"checkpoint {path} exists already; choose another name or pass overwrite=True"
            )
        place = f"runs/{model_id.replace(':', '_')}/{kind}/{name}-{secrets.token_hex(4)}"
        self._db.write("INSERT INTO leftovers VALUES (?)", place)
        try:
            with new_directory(self.directory / place) as folder:
                write(folder)
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        except BaseException:
            self._db.write("DELETE FROM leftovers WHERE folder = ?", place)
            raise
        expires = None if ttl_seconds is None else now(ttl_seconds)
        row = (path, model_id, kind, name, place, now(), size, expires, dump(user_metadata), False)
        with self._db.transaction():
            replaced = self._db.rows("SELECT folder FROM checkpoints WHERE path = ?", path)
            for old in replaced:
                self._db.write("INSERT OR IGNORE INTO leftovers VALUES (?)", old["folder"])
            self._db.write("INSERT OR REPLACE INTO checkpoints VALUES (?,?,?,?,?,?,?,?,?,?)", *row)
            self._db.write("DELETE FROM leftovers WHERE folder = ?", place)
        for old in replaced:
            self._clear(old["folder"])
        return Checkpoint(path, model_id, kind, name, place, row[5], size, expires, user_metadata)

    def checkpoint(self, path: str) -> Checkpoint | None:
        """The checkpoint at a path, unless its time to live has passed."""
        rows = self._db.rows(f"SELECT * FROM checkpoints WHERE path = ? AND ({ALIVE})", path, now())
        return checkpoint_of(rows[0]) if rows else None

    def checkpoints(
        self,
        model_id: str | None = None,
        kind: str | None = None,
        limit: int = -1,
        offset: int = 0,
    ) -> list[Checkpoint]:
        """Checkpoints of a run or of all runs, of one kind or of all; newest first."""
        rows = self._db.rows(
            "SELECT * FROM checkpoints WHERE (?1 IS NULL OR model_id = ?1) "
            "AND (?2 IS NULL OR kind = ?2) AND (expires IS NULL OR expires >= ?3) "
            "ORDER BY time DESC, path LIMIT ?4 OFFSET ?5",
            *(model_id, kind, now(), limit, offset),
        )
        return [checkpoint_of(row) for row in rows]

    def count_checkpoints(self) -> int:
        [(count,)] = self._db.rows(f"SELECT count(*) FROM checkpoints WHERE {ALIVE}", now())
        return count

    def set_ttl(self, path: str, ttl_seconds: int | None) -> None:
        """Let a checkpoint live that long from now on; None: for ever."""
        expires = None if ttl_seconds is None else now(ttl_seconds)
        self._db.write("UPDATE checkpoints SET expires = ? WHERE path = ?", expires, path)

    def set_public(self, path: str, is_public: bool) -> None:
        self._db.write("UPDATE checkpoints SET public = ? WHERE path = ?", is_public, path)

    def folder(self, checkpoint: Checkpoint) -> Path:
        """Where a checkpoint's files lie."""
        return self.directory / checkpoint.folder

    def delete(self, checkpoint: Checkpoint) -> None:
        """Remove one checkpoint for good; one that took its name meanwhile stays."""
        with self._db.transaction():
            condition = "path = ? AND folder = ?"
            values = (checkpoint.path, checkpoint.folder)
            if not self._db.write(f"DELETE FROM checkpoints WHERE {condition}", *values):
                return
            self._db.write("INSERT OR IGNORE INTO leftovers VALUES (?)", checkpoint.folder)
        self._clear(checkpoint.folder)

    def remove_expired(self) -> None:
        """Remove the checkpoints whose time to live has passed, and nothing else."""
        for row in self._db.rows("SELECT * FROM checkpoints WHERE expires < ?", now()):
            self.delete(checkpoint_of(row))

    def _sweep(self) -> None:
        """Clear up what servers that were killed had begun to write or to remove. While another
        server is at work on this store, what it has begun cannot be told from that: it stays."""
        try:
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for row in self._db.rows("SELECT folder FROM leftovers"):
                self._clear(row["folder"])
        except BlockingIOError:
            log.info("another server works on %s; its unfinished files are left", self.directory)
        except OSError as error:
            log.warning("cannot lock %s (%s): nothing is cleared up", self.directory, error)
            return
        fcntl.flock(self._presence, fcntl.LOCK_SH)

    def _clear(self, place: str) -> None:
        folder = self.directory / place
        for path in (folder, *folder.parent.glob(f".{folder.name}.*")):  # files.new_directory
            shutil.rmtree(path, ignore_errors=True)
        if not folder.exists():
            self._db.write("DELETE FROM leftovers WHERE folder = ?", place)


def check_name(name: str) -> None:
    """A checkpoint's name becomes a folder and a segment of its tinker:// path."""
    if not NAME.fullmatch(name):
        raise TinsmithError(
            f"checkpoint name {name!r}: must be 1 to 200 letters, digits, '.', '_' or '-', "
            "and start with a letter or digit"
        )
