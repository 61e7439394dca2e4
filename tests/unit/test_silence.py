"""A session that nobody keeps alive is ended, and what it held is freed."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from tinsmith.backend import silence as silence_module
from tinsmith.backend.silence import SESSION_TIMEOUT_S, Silence
from tinsmith.backend.storage.store import Store
from tinsmith.backend.wire.session_routes import add_session_routes


def test_a_session_ends_after_its_timeout_and_a_heartbeat_starts_the_count_again():
    asyncio.run(let_sessions_fall_silent())


async def let_sessions_fall_silent() -> None:
    ended: list[str] = []
    silence = Silence(ended.append)
    for session_id in ("dead", "alive", "finished"):
        silence.hear(session_id)
    for _ in range(int(SESSION_TIMEOUT_S / 100) - 1):
        silence.pass_time(100)
        silence.hear("alive")
    silence.forget("finished")
    assert ended == []
    assert silence.of("dead") == SESSION_TIMEOUT_S - 100
    silence.pass_time(100)
    assert ended == ["dead"]
    assert silence.of("alive") == 100
    assert silence.of("dead") == silence.of("never heard") == float("inf")


class Freed:
    """Stands in for the parts that hold a session's memory."""

    def __init__(self) -> None:
        self.sessions: list[str] = []

    def free(self, session_id: str) -> None:
        self.sessions.append(session_id)


class ImmediateEngine:
    def submit(self, _: str, operation: Callable[[], object], __: object) -> None:
        operation()


def test_a_dead_clients_session_is_freed_and_its_late_heartbeat_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(silence_module, "TICK_S", 0.05)
    monkeypatch.setattr(silence_module, "SESSION_TIMEOUT_S", 0.2)
    store, training, samplers = Store(tmp_path), Freed(), Freed()
    promises = SimpleNamespace(create=lambda _: None)
    sequencer = SimpleNamespace(close=lambda _: None)
    core: Any = SimpleNamespace(
        store=store, engine=ImmediateEngine(), promises=promises, sequencer=sequencer
    )
    app, api = FastAPI(), APIRouter()
    parts: Any = (training, samplers)
    add_session_routes(api, core, *parts)
    app.include_router(api)
    with TestClient(app) as client:
        opened = client.post("/create_session", json={"sdk_version": "0.38.0", "tags": []})
        session_id = opened.json()["session_id"]
        for _ in range(400):
            if training.sessions:
                break
            time.sleep(0.05)
        late = client.post("/session_heartbeat", json={"session_id": session_id})
    assert training.sessions == samplers.sessions == [session_id]
    assert late.status_code == 410
    session = store.sessions.find(session_id)
    assert session is not None
    assert session.ended == {
        "reason": {"type": "interrupted"}, "detail": "no heartbeat for 600 s",
    }  # fmt: skip
    store.close()
