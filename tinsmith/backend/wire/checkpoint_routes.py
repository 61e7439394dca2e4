"""Training runs and their checkpoints: listed, described, kept, copied and removed."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Header

from tinsmith.backend.core import Core, NotFound, refuse_access_token
from tinsmith.backend.storage.records import KINDS, Checkpoint, Run, texts
from tinsmith.backend.wire.requests import AccessScope
from tinsmith.backend.wire.rest_requests import CopyWeightsRequest, TtlRequest, WeightsInfoRequest
from tinsmith.backend.wire.session_routes import OWNER, Limit, Offset
from tinsmith.errors import TinsmithError
from tinsmith.files import link_tree


def add_run_routes(api: APIRouter, core: Core) -> None:
    """What runs and checkpoints there are."""

    @api.get("/training_runs")
    async def training_runs(
        limit: Limit = 20,
        offset: Offset = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> dict[str, Any]:
        runs, total = core.store.runs(limit, offset, project_id)
        page = [_run(core, run) for run in runs]
        return {"training_runs": page, "cursor": _cursor(limit, offset, total)}

    @api.get("/training_runs/{model_id}")
    async def training_run(model_id: str, access_scope: AccessScope = "owned") -> dict[str, Any]:
        return _run(core, _known_run(core, model_id))

    @api.get("/training_runs/{model_id}/checkpoints")
    async def checkpoints_of_run(model_id: str) -> dict[str, Any]:
        _known_run(core, model_id)
        return {"checkpoints": list(map(_checkpoint, core.store.checkpoints(model_id)))}

    @api.get("/checkpoints")
    async def checkpoints(limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        page = list(map(_checkpoint, core.store.checkpoints(limit=limit, offset=offset)))
        cursor = _cursor(limit, offset, core.store.count_checkpoints())
        return {"checkpoints": page, "cursor": cursor}

    @api.post("/weights_info")
    async def weights_info(request: WeightsInfoRequest) -> dict[str, Any]:
        _, run = core.checkpoint(request.tinker_path, *KINDS)
        lora = run.lora
        return {
            "base_model": run.base_model,
            "optimizer_config": {"type": "adamw"},
            "is_lora": True,
            "lora_rank": lora.rank,
            "train_attn": lora.train_attn,
            "train_mlp": lora.train_mlp,
            "train_unembed": lora.train_unembed,
        }


def add_checkpoint_routes(api: APIRouter, core: Core) -> None:
    """What can be done to a checkpoint. These touch files: they run beside the event loop."""
    one = "/training_runs/{model_id}/checkpoints/{kind}/{name}"

    def known(model_id: str, kind: str, name: str) -> Checkpoint:
        checkpoint, _ = core.checkpoint(f"tinker://{model_id}/{kind}/{name}", *KINDS)
        return checkpoint

    @api.delete(one)
    def delete(model_id: str, kind: str, name: str) -> dict[str, Any]:
        core.store.delete(known(model_id, kind, name))
        return {}

    @api.put(f"{one}/ttl")
    def set_ttl(model_id: str, kind: str, name: str, request: TtlRequest) -> dict[str, Any]:
        core.store.set_ttl(known(model_id, kind, name).path, request.ttl_seconds)
        return {}

    # Twice is as good as once: the hosted service answers 409, which the SDK takes for "try
    # again" and does for five minutes.
    @api.post(f"{one}/publish")
    def publish(model_id: str, kind: str, name: str) -> dict[str, Any]:
        core.store.set_public(known(model_id, kind, name).path, True)
        return {}

    @api.delete(f"{one}/publish")
    def unpublish(model_id: str, kind: str, name: str) -> dict[str, Any]:
        core.store.set_public(known(model_id, kind, name).path, False)
        return {}

    @api.post("/copy_weights")
    def copy_weights(
        request: CopyWeightsRequest,
        x_idempotency_key: Annotated[str | None, Header()] = None,
        x_tinker_weights_access_token: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        refuse_access_token(request.weights_access_token or x_tinker_weights_access_token)
        return {"tinker_path": _copy(core, request, x_idempotency_key or uuid.uuid4().hex)}


def _copy(core: Core, request: CopyWeightsRequest, key: str) -> str:
    """Copy a checkpoint into a run of its own, which cannot be trained on; the path of the copy.

    The run belongs to a new session with the project's id, or to the session that is named. The
    files are shared with the source. A request that is repeated, with the same `key`, finds the
    copy that was made.
    """
    source, run = core.checkpoint(request.source_path, *KINDS)
    if request.session_id is not None and request.model_seq_id is not None:
        core.require_session(request.session_id)
        session_id = request.session_id
        model_id = f"{session_id}:train:{request.model_seq_id}"
    elif request.destination_project_id is not None:
        session_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{key} {source.path}").hex
        model_id = f"{session_id}:train:0"
        details = {"project_id": request.destination_project_id, "display_name": "copy_weights"}
        core.store.sessions.add(session_id, details)
    else:
        raise TinsmithError(
            "copy_weights needs destination_project_id, or session_id and model_seq_id"
        )
    path = f"tinker://{model_id}/{source.kind}/{source.name}"
    if core.store.checkpoint(path) is not None:
        return path
    if request.session_id is not None and core.store.run(model_id) is not None:
        raise TinsmithError(f"training run {model_id} exists already; choose another model_seq_id")
    core.store.add_run(model_id, session_id, run.base_model, run.lora, run.user_metadata)
    copy = core.store.save(
        model_id,
        source.kind,
        source.name,
        lambda folder: link_tree(core.store.folder(source), folder),
        ttl_seconds=request.ttl_seconds,
        user_metadata=source.user_metadata,
    )
    return copy.path


def _known_run(core: Core, model_id: str) -> Run:
    run = core.store.run(model_id)
    if run is None:
        raise NotFound(f"training run {model_id!r} does not exist in {core.store.directory}")
    return run


def _run(core: Core, run: Run) -> dict[str, Any]:
    def last(kind: str) -> dict[str, Any] | None:
        found = core.store.checkpoints(run.model_id, kind, limit=1)
        return _checkpoint(found[0]) if found else None

    return {
        "training_run_id": run.model_id,
        "base_model": run.base_model,
        "model_owner": OWNER,
        "is_lora": True,
        "lora_rank": run.lora.rank,
        "corrupted": False,  # a request that fails leaves the model as it was
        "last_request_time": run.last_request,
        "last_checkpoint": last("weights"),
        "last_sampler_checkpoint": last("sampler_weights"),
        "user_metadata": texts(run.user_metadata),
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint_id": f"{checkpoint.kind}/{checkpoint.name}",
        "checkpoint_type": KINDS[checkpoint.kind],
        "time": checkpoint.time,
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.size_bytes,
        "public": checkpoint.public,
        "expires_at": checkpoint.expires,
        "user_metadata": texts(checkpoint.user_metadata),
    }


def _cursor(limit: int, offset: int, total: int) -> dict[str, int]:
    return {"limit": limit, "offset": offset, "total_count": total}
