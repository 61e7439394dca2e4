"""What stands in the store: capabilities, runs, checkpoints and their files."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from tinsmith.backend import requests as wire
from tinsmith.backend.core import Core, NotFound
from tinsmith.backend.store import KINDS, Checkpoint, Run

DOWNLOAD_LIFE_S = 3600
Limit = Annotated[int, Query(ge=0, le=1000)]
Offset = Annotated[int, Query(ge=0)]


def add_listing_routes(api: APIRouter, root: APIRouter, core: Core) -> None:
    """Routes under /api/v1, and the signed downloads beside them."""

    @api.get("/get_server_capabilities")
    async def capabilities() -> dict[str, Any]:
        models = [
            {
                "model_name": name,
                "max_context_length": base.context_length,
                "trainable": True,
                "sampleable": True,
            }
            for name, base in core.bases.items()
        ]
        return {"supported_models": models}

    @api.get("/training_runs")
    async def training_runs(limit: Limit = 20, offset: Offset = 0) -> dict[str, Any]:
        runs = core.store.runs()
        page = [_run(core, run) for run in runs[offset : offset + limit]]
        return {"training_runs": page, "cursor": _cursor(limit, offset, len(runs))}

    @api.get("/training_runs/{model_id}")
    async def training_run(model_id: str) -> dict[str, Any]:
        return _run(core, _known_run(core, model_id))

    @api.get("/training_runs/{model_id}/checkpoints")
    async def checkpoints_of_run(model_id: str) -> dict[str, Any]:
        _known_run(core, model_id)
        return {"checkpoints": list(map(_checkpoint, core.store.checkpoints(model_id)))}

    @api.get("/checkpoints")
    async def checkpoints(limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        found = core.store.checkpoints()
        page = list(map(_checkpoint, found[offset : offset + limit]))
        return {"checkpoints": page, "cursor": _cursor(limit, offset, len(found))}

    @api.post("/weights_info")
    async def weights_info(request: wire.WeightsInfoRequest) -> dict[str, Any]:
        _, run = core.checkpoint(request.tinker_path, *KINDS)
        lora = run.lora
        return {
            "base_model": run.base_model,
            "is_lora": True,
            "lora_rank": lora.rank,
            "train_attn": lora.train_attn,
            "train_mlp": lora.train_mlp,
            "train_unembed": lora.train_unembed,
        }

    _add_downloads(api, root, core)


def _add_downloads(api: APIRouter, root: APIRouter, core: Core) -> None:
    tickets: dict[str, tuple[Path, float]] = {}  # token -> folder, end of life (monotonic)

    @api.get("/training_runs/{model_id}/checkpoints/{kind}/{name}/external_weights_urls")
    async def external_weights_urls(
        model_id: str, kind: str, name: str, request: Request
    ) -> dict[str, Any]:
        path = f"tinker://{model_id}/{kind}/{name}"
        checkpoint, _ = core.checkpoint(path, "external_weights")
        folder = core.store.folder(checkpoint)
        for token in [t for t, (_, end) in tickets.items() if end < time.monotonic()]:
            del tickets[token]
        token = secrets.token_urlsafe(32)
        tickets[token] = (folder, time.monotonic() + DOWNLOAD_LIFE_S)
        files = sorted(file.name for file in folder.iterdir() if file.is_file())
        urls = {
            name: str(request.base_url.replace(path=f"/files/{token}/{name}")) for name in files
        }
        expires = datetime.now(UTC) + timedelta(seconds=DOWNLOAD_LIFE_S)
        return {"urls": urls, "expires": expires.isoformat()}

    @root.get("/files/{token}/{name}")
    async def download(token: str, name: str) -> FileResponse:
        folder, end = tickets.get(token, (None, 0.0))
        if folder is None or end < time.monotonic():
            raise NotFound("this download link is unknown or has expired; ask for a new one")
        if not folder.is_dir() or name not in {file.name for file in folder.iterdir()}:
            raise NotFound(f"the checkpoint has no file {name!r}")
        return FileResponse(folder / name)


def _known_run(core: Core, model_id: str) -> Run:
    run = core.store.run(model_id)
    if run is None:
        raise NotFound(f"training run {model_id!r} does not exist")
    return run


def _run(core: Core, run: Run) -> dict[str, Any]:
    checkpoints = core.store.checkpoints(run.model_id)
    last = {kind: next((c for c in checkpoints if c.kind == kind), None) for kind in KINDS}
    states, samplers = last["weights"], last["sampler_weights"]
    return {
        "training_run_id": run.model_id,
        "base_model": run.base_model,
        "model_owner": "local",
        "is_lora": True,
        "lora_rank": run.lora.rank,
        "last_request_time": run.last_request,
        "last_checkpoint": _checkpoint(states) if states else None,
        "last_sampler_checkpoint": _checkpoint(samplers) if samplers else None,
        "user_metadata": run.user_metadata,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint_id": f"{checkpoint.kind}/{checkpoint.name}",
        "checkpoint_type": KINDS[checkpoint.kind],
        "time": checkpoint.time,
        "tinker_path": checkpoint.path,
        "size_bytes": checkpoint.size_bytes,
        "public": False,
        "expires_at": checkpoint.expires,
        "user_metadata": checkpoint.user_metadata,
    }


def _cursor(limit: int, offset: int, total: int) -> dict[str, int]:
    return {"limit": limit, "offset": offset, "total_count": total}
