"""External weights: links that give the files of one checkpoint, for an hour, without the key."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from tinsmith.backend.core import Core, NotFound

DOWNLOAD_LIFE_S = 3600


def add_download_routes(api: APIRouter, root: APIRouter, core: Core) -> None:
    """The links under /api/v1, and the files that they lead to beside it."""
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
