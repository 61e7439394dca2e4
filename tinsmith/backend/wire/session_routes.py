"""Sessions: opened, kept alive and ended by a client; listed and searched by any."""

import uuid
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from structlog.contextvars import bind_contextvars

from tinsmith.backend.core import CANCELLED, Core, NotFound
from tinsmith.backend.futures import JsonResult
from tinsmith.backend.samplers import Samplers
from tinsmith.backend.silence import SESSION_TIMEOUT_S, Silence
from tinsmith.backend.storage.database import as_text
from tinsmith.backend.storage.records import Session, texts
from tinsmith.backend.training import Training
from tinsmith.backend.wire import requests as wire
from tinsmith.backend.wire.rest_requests import SessionSearchRequest, SessionStatusQuery
from tinsmith.backend.wire.sdk_versions import note_on

OWNER = "local"  # of everything: the server has one key, and no accounts
# A client sends a heartbeat every 10 s, and is warned when none came through for this long.
MAX_SILENCE_S = 120.0
Limit = Annotated[int, Query(ge=0, le=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**63)]  # what the database can count
# Ends a session for a reason, and frees what it held.
Ending = Callable[[str, dict[str, Any]], None]
log = structlog.stdlib.get_logger(__name__)


def add_session_routes(api: APIRouter, core: Core, training: Training, samplers: Samplers) -> None:
    """The life of a session."""
    end = _ending(core, training, samplers)
    silence = Silence(partial(_give_up, end))

    @api.post("/create_session")
    async def create_session(request: wire.CreateSessionRequest) -> dict[str, str | None]:
        session_id = uuid.uuid4().hex
        core.store.sessions.add(session_id, request.model_dump(exclude={"type"}))
        silence.hear(session_id)
        bind_contextvars(session_id=session_id)
        return {
            "type": "create_session",
            "session_id": session_id,
            "warning_message": note_on(request.sdk_version),
        }

    @api.post("/session_heartbeat")
    async def session_heartbeat(request: wire.SessionRequest) -> Response:
        bind_contextvars(session_id=request.session_id)
        session = core.store.sessions.find(request.session_id)
        if session is None or session.ended is not None:
            what = "does not exist" if session is None else "has ended"
            return JSONResponse({"error": f"the session {what}"}, status_code=410)
        silence.hear(request.session_id)
        return JSONResponse({"type": "session_heartbeat"})

    @api.post("/sessions/{session_id}/finish")
    async def finish_session(session_id: str, request: wire.FinishSessionRequest) -> dict[str, Any]:
        _known(core, session_id)
        silence.forget(session_id)
        end(session_id, request.model_dump(exclude={"type"}))
        return {}

    _add_cancel(api, core, training, silence, end)
    _add_session_listing(api, core, samplers, silence)


def _add_cancel(
    api: APIRouter, core: Core, training: Training, silence: Silence, end: Ending
) -> None:
    @api.post("/training_runs/{model_id}/cancel")
    async def cancel_run(model_id: str) -> dict[str, Any]:
        """An addition to the Tinker API: stop the program that trains a run, with its session."""
        run = core.store.run(model_id)
        if run is None:
            raise NotFound(f"training run {model_id!r} does not exist in {core.store.directory}")
        session_id = model_id.split(":")[0]
        core.require_session(session_id)
        training.cancel(session_id)
        silence.forget(session_id)
        end(session_id, {"reason": {"type": "interrupted"}, "detail": CANCELLED})
        log.warning("run cancelled", model_id=model_id, session_id=session_id)
        return {
            "session_id": session_id,
            "training_run_ids": core.store.sessions.models(session_id),
        }


def _ending(core: Core, training: Training, samplers: Samplers) -> Ending:
    """What ends a session, for a reason, and frees what it held."""

    def end(session_id: str, reason: dict[str, Any]) -> None:
        core.store.sessions.end(session_id, reason)
        core.sequencer.close(session_id)

        def free() -> JsonResult:
            training.free(session_id)
            samplers.free(session_id)
            return JsonResult({})

        core.engine.submit("free", free, core.promises.create(f"{session_id}:finish"))

    return end


def _give_up(end: Ending, session_id: str) -> None:
    log.warning("session ended: no heartbeat", session_id=session_id)
    detail = f"no heartbeat for {SESSION_TIMEOUT_S:.0f} s"
    end(session_id, {"reason": {"type": "interrupted"}, "detail": detail})


def _add_session_listing(api: APIRouter, core: Core, samplers: Samplers, silence: Silence) -> None:
    @api.get("/sessions")
    async def sessions(
        limit: Limit = 20, offset: Offset = 0, access_scope: wire.AccessScope = "owned"
    ) -> dict[str, Any]:
        return {"sessions": core.store.sessions.ids(limit, offset)}

    @api.get("/sessions/{session_id}")
    async def session(session_id: str, access_scope: wire.AccessScope = "owned") -> dict[str, Any]:
        details = _known(core, session_id).details
        return {
            "training_run_ids": core.store.sessions.models(session_id),
            "sampler_ids": samplers.of_session(session_id),
            "user_metadata": texts(details.get("user_metadata")),
            "display_name": details.get("display_name"),
        }

    @api.post("/sessions/search")
    def search(request: SessionSearchRequest) -> dict[str, Any]:
        cursor = request.cursor
        older = core.store.sessions.before(
            as_text(cursor.last_created_at) if cursor else None,
            cursor.last_session_id if cursor else "",
        )
        found = (one for one in older if _matches(one, request, _status(one, silence)))
        page = list(islice(found, request.limit + 1))
        last = page[request.limit - 1] if len(page) > request.limit else None
        return {
            "sessions": [_summary(core, one, silence) for one in page[: request.limit]],
            "next_cursor": last
            and {"last_created_at": last.created, "last_session_id": last.session_id},
        }


def _known(core: Core, session_id: str) -> Session:
    bind_contextvars(session_id=session_id)
    session = core.store.sessions.find(session_id)
    if session is None:
        raise NotFound(f"session {session_id!r} does not exist in {core.store.directory}")
    return session


def _matches(
    session: Session, request: SessionSearchRequest, status: dict[str, Any] | None
) -> bool:
    """Whether a session is one that a search asks for: every filter holds, of session_id and
    display_name either."""
    details = session.details
    name = (details.get("display_name") or "").lower()
    names = [session.session_id == request.session_id] if request.session_id is not None else []
    if request.display_name is not None:
        names.append(all(word in name for word in request.display_name.lower().split()))
    metadata = texts(details.get("user_metadata")) or {}
    projects, owner = request.project_ids, request.owner
    return (
        (not names or any(names))
        and request.user_metadata.items() <= metadata.items()
        and (projects is None or details.get("project_id") in projects)
        and (owner.type != "user" or OWNER in owner.owner_urns)
        and (request.statuses is None or _has_status(status, request.statuses))
    )


def _has_status(status: dict[str, Any] | None, wanted: Iterable[SessionStatusQuery]) -> bool:
    return status is not None and any(
        query.type == status["type"]
        and (query.reasons is None or status["reason"]["type"] in query.reasons)
        for query in wanted
    )


def _status(session: Session, silence: Silence) -> dict[str, Any] | None:
    """None where a session neither ended nor was heard of lately."""
    if session.ended is not None:
        return {"type": "client_finished", **session.ended}
    is_alive = silence.of(session.session_id) < MAX_SILENCE_S
    return {"type": "active"} if is_alive else None


def _summary(core: Core, session: Session, silence: Silence) -> dict[str, Any]:
    count, size_bytes = core.store.sessions.storage(session.session_id)
    return {
        "session_id": session.session_id,
        "created_at": session.created,
        "owner": OWNER,
        "project_id": session.details.get("project_id") or "",
        "status": _status(session, silence),
        "checkpoints_count": count,
        "checkpoint_storage_bytes": size_bytes,
        "display_name": session.details.get("display_name"),
        "user_metadata": texts(session.details.get("user_metadata")),
    }
