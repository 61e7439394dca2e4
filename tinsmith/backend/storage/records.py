"""What a store remembers of sessions, runs, samplers and checkpoints, as its rows say."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinsmith.backend.model.adapter import LoraSettings

# The kinds of checkpoints, as their paths name them, and as the SDK does.
KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its client opened it, and the reason it gave when it ended.

    `ended` is what the client sent: `{"reason": {"type": ...}, "detail": ...}`.
    """

    session_id: str
    created: str
    details: Mapping[str, Any]
    ended: Mapping[str, Any] | None


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
    public: bool = False


def session_of(row: sqlite3.Row) -> Session:
    ended = None if row["ended"] is None else json.loads(row["ended"])
    return Session(row["session_id"], row["created"], json.loads(row["details"]), ended)


def run_of(row: sqlite3.Row) -> Run:
    return Run(
        row["model_id"],
        row["base_model"],
        LoraSettings(**json.loads(row["lora"])),
        _load(row["user_metadata"]),
        row["last_request"],
    )


def checkpoint_of(row: sqlite3.Row) -> Checkpoint:
    changed = {"user_metadata": _load(row["user_metadata"]), "public": bool(row["public"])}
    return Checkpoint(**{**dict(row), **changed})


def texts(metadata: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Metadata as the SDK reads it, with texts for values; what else a client gave is JSON."""
    if metadata is None:
        return None
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


def dump(value: Any) -> str | None:
    """A value as a nullable JSON column holds it."""
    return None if value is None else json.dumps(value)


def _load(text: str | None) -> Any:
    return None if text is None else json.loads(text)
