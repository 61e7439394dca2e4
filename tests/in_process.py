"""A server in a thread of the test's own process, for tests that look or reach into it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinker
import uvicorn
from fastapi import FastAPI

from tinsmith.backend.core import Core
from tinsmith.backend.server import running_core
from tinsmith.backend.wire.app import make_app
from tinsmith.settings import ServerSettings

KEY = "tml-key-of-a-server-in-this-process"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: its parts, its application and its address."""

    core: Core
    app: FastAPI
    base_url: str

    def client(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.base_url, api_key=KEY)


@contextmanager
def serving(model: Path, store: Path, **changes: Any) -> Iterator[Served]:
    """Serve `model` as qwen3, over HTTP, as long as the block; `changes` are settings."""
    import torch

    torch.set_num_threads(1)
    values: dict[str, Any] = {"device": "cpu", "dtype": "float32"} | changes
    settings = ServerSettings(
        models={"qwen3": str(model)},
        store=str(store),
        api_key=KEY,
        **values,
    )
    with running_core(settings) as core:
        app = make_app(core, KEY)
        config = uvicorn.Config(app, port=0, log_config=None, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Served(core, app, f"http://127.0.0.1:{port}")
        finally:
            server.should_exit = True
            thread.join()
