"""Whether the server is alive, whether it can compute, and what it measures."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tinsmith.backend.core import Core
from tinsmith.backend.metrics import Gauge, gpu_bytes
from tinsmith.backend.training import Training


def add_health_routes(root: APIRouter, core: Core, training: Training) -> None:
    """Health and readiness, which need no key, and metrics, which do."""
    core.metrics.read_when_asked(_gauges(core, training))

    @root.get("/healthz")
    @root.get("/api/v1/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @root.get("/readyz")
    async def readyz() -> Response:
        # The kind alone: whoever has no key learns nothing of data or paths.
        if (death := core.engine.death) is not None:
            reason = f"the engine has stopped: {type(death).__name__}; restart the server"
            return JSONResponse({"error": reason}, status_code=503)
        if not core.engine.is_alive:
            return JSONResponse({"error": "the engine does not run"}, status_code=503)
        answer: dict[str, Any] = {"status": "ready", "models": list(core.bases)}
        return JSONResponse(answer)

    @root.get("/metrics")
    async def metrics() -> Response:
        text = generate_latest(core.metrics.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _gauges(core: Core, training: Training) -> list[Gauge]:
    def one(read: Callable[[], float]) -> Callable[[], dict[str, float]]:
        return lambda: {"": read()}

    def snapshots() -> dict[str, float]:
        held = core.pool.snapshots
        return {"memory": held.num_in_memory, "disk": held.num_on_disk}

    return [
        Gauge(
            "tinsmith_engine_up", "1 while the engine computes.", one(lambda: core.engine.is_alive)
        ),
        Gauge(
            "tinsmith_operations_waiting",
            "Operations that wait for the engine.",
            one(lambda: core.engine.num_queued),
        ),
        Gauge(
            "tinsmith_sample_requests_waiting",
            "Sample requests that wait for room in a batch.",
            one(lambda: core.pool.num_waiting),
        ),
        Gauge(
            "tinsmith_completions_running",
            "Completions that are being sampled.",
            one(lambda: core.pool.num_running),
        ),
        Gauge("tinsmith_models", "Models in training.", one(lambda: training.num_models)),
        Gauge("tinsmith_snapshots", "Weights held to sample from.", snapshots, "place"),
        Gauge(
            "tinsmith_gpu_memory_allocated_bytes", "Memory that torch holds.", gpu_bytes, "device"
        ),
    ]
