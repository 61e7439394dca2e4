"""Sessions: opened by a client, ended by it, and found again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tinsmith.backend.storage.database import Database, now
from tinsmith.backend.storage.records import Session, session_of


class SessionStore:
    """The sessions of a store."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, session_id: str, details: Mapping[str, Any]) -> None:
        """Remember a new session; one of this id that is there already stays as it is."""
        self._db.write(
            "INSERT OR IGNORE INTO sessions (session_id, created, details) VALUES (?, ?, ?)",
            *(session_id, now(), json.dumps(details)),
        )

    def end(self, session_id: str, reason: Mapping[str, Any]) -> None:
        """Note the reason of the end; the first one stands."""
        self._db.write(
            "UPDATE sessions SET ended = ? WHERE session_id = ? AND ended IS NULL",
            *(json.dumps(reason), session_id),
        )

    def find(self, session_id: str) -> Session | None:
        rows = self._db.rows("SELECT * FROM sessions WHERE session_id = ?", session_id)
        return session_of(rows[0]) if rows else None

    def ids(self, limit: int, offset: int) -> list[str]:
        """A page of all sessions, newest first."""
        sql = "SELECT session_id FROM sessions ORDER BY created DESC, session_id DESC"
        return [row[0] for row in self._db.rows(f"{sql} LIMIT ? OFFSET ?", limit, offset)]

    def before(self, created: str | None, session_id: str) -> Iterator[Session]:
        """The sessions older than one that was created then; None begins at the newest."""
        page_size = 200
        while True:
            rows = self._db.rows(
                "SELECT * FROM sessions WHERE ?1 IS NULL OR (created, session_id) < (?1, ?2) "
                "ORDER BY created DESC, session_id DESC LIMIT ?3",
                *(created, session_id, page_size),
            )
            yield from map(session_of, rows)
            if len(rows) < page_size:
                return
            created, session_id = rows[-1]["created"], rows[-1]["session_id"]

    def models(self, session_id: str) -> list[str]:
        """The ids of a session's training runs, oldest first."""
        rows = self._db.rows(
            "SELECT model_id FROM runs WHERE session_id = ? ORDER BY rowid", session_id
        )
        return [row[0] for row in rows]

    def samplers(self, session_id: str) -> list[str]:
        """The ids of a session's sampling sessions on base models and checkpoints."""
        # An index finds a range; ':' is what an id goes on with, ';' the next character.
        rows = self._db.rows(
            "SELECT sampler_id FROM samplers WHERE sampler_id > ? AND sampler_id < ?",
            *(f"{session_id}:", f"{session_id};"),
        )
        return [row[0] for row in rows]

    def storage(self, session_id: str) -> tuple[int, int]:
        """The number of a session's checkpoints and their bytes."""
        [row] = self._db.rows(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM checkpoints JOIN runs "
            "USING (model_id) WHERE session_id = ? AND (expires IS NULL OR expires >= ?)",
            *(session_id, now()),
        )
        return row[0], row[1]
