"""The routes of the Tinker API under /api/v1."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from google.protobuf.message import DecodeError
from structlog.contextvars import bind_contextvars
from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.core import Core, NotFound
from tinsmith.backend.futures import Failure, JsonResult, Promise
from tinsmith.backend.samplers import Samplers
from tinsmith.backend.saving import Saving
from tinsmith.backend.training import Training
from tinsmith.backend.wire import requests as wire
from tinsmith.backend.wire.bodies import read_body
from tinsmith.backend.wire.checkpoint_routes import add_checkpoint_routes, add_run_routes
from tinsmith.backend.wire.download_routes import add_download_routes
from tinsmith.backend.wire.health import add_health_routes
from tinsmith.backend.wire.json_datums import forward_backward_message, forward_message
from tinsmith.backend.wire.openai_routes import add_openai_routes
from tinsmith.backend.wire.refused_routes import add_refused_routes
from tinsmith.backend.wire.sdk_versions import refuse_old_sdk
from tinsmith.backend.wire.session_routes import add_session_routes
from tinsmith.errors import TinsmithError

# The client gives up a poll after 45 s.
LONG_POLL_S = 30.0
PROTOBUF = "application/x-protobuf"
JSON = "application/json"
# One request carries a whole batch, so that the metrics are exact over it.
CLIENT_CONFIG = {
    "parallel_fwdbwd_chunks": False,
    "proto_compress_fwdbwd": False,
    "fwdbwd_max_chunk_len": 65_536,
    "fwdbwd_max_chunk_bytes_count": 200_000_000,
    "sample_max_concurrent_requests": 2000,
    "sample_join_sampling_session": True,
}


def make_router(core: Core) -> APIRouter:
    """All routes over the parts that answer them."""
    router = APIRouter()
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(refuse_old_sdk)])
    training, samplers = Training(core), Samplers(core)
    _add_client_routes(api, core)
    add_session_routes(api, core, training, samplers)
    _add_training_routes(api, core, training)
    _add_saving_routes(api, Saving(core, training, samplers))
    _add_sampling_routes(api, samplers)
    _add_future_route(api, core)
    add_run_routes(api, core)
    add_checkpoint_routes(api, core)
    add_download_routes(api, router, core)
    add_refused_routes(api)
    add_openai_routes(router, core)
    add_health_routes(router, core, training)
    router.include_router(api)
    return router


def _add_client_routes(api: APIRouter, core: Core) -> None:
    @api.post("/client/config")
    async def client_config(_: wire.ClientConfigRequest) -> dict[str, Any]:
        return CLIENT_CONFIG

    @api.post("/client/dynamic_config")
    async def dynamic_config(_: wire.ClientConfigRequest) -> dict[str, Any]:
        return {"refresh_interval_sec": 300, "sample_cancel_enabled": True}

    @api.get("/get_server_capabilities")
    async def capabilities() -> dict[str, Any]:
        models = [
            {
                "model_name": name,
                "max_context_length": base.context_length,
                "trainable": True,
                "sampleable": True,
                # Not of the SDK, which leaves it out: what its log-probabilities are compared in.
                "dtype": str(base.dtype).removeprefix("torch."),
            }
            for name, base in core.bases.items()
        ]
        return {"supported_models": models}

    @api.post("/telemetry")
    async def telemetry(_: Request) -> dict[str, str]:
        return {"status": "accepted"}  # and dropped: it stays on this machine


def _add_training_routes(api: APIRouter, core: Core, training: Training) -> None:
    @api.post("/create_model")
    async def create_model(request: wire.CreateModelRequest) -> dict[str, Any]:
        return _pending(training.create(request))

    @api.post("/load_weights")
    async def load_weights(request: wire.LoadWeightsRequest) -> dict[str, Any]:
        return _pending(training.load(request))

    @api.post("/get_info")
    async def get_info(request: wire.ModelRequest) -> dict[str, Any]:
        bind_contextvars(model_id=request.model_id)
        run = core.store.run(request.model_id)
        if run is None:
            raise NotFound(f"model {request.model_id!r} does not exist")
        base = core.base(run.base_model)
        return {
            "type": "get_info",
            "model_id": run.model_id,
            "model_data": {
                "arch": type(base.module).__name__,
                "model_name": run.base_model,
                "tokenizer_id": base.tokenizer_id,
            },
            "is_lora": True,
            "lora_rank": run.lora.rank,
            "model_name": run.base_model,
            "optimizer_config": {"type": "adamw"},
        }

    @api.post("/forward_backward")
    async def forward_backward(request: Request) -> dict[str, Any]:
        message = await _forward_backward(request)
        return _pending(training.forward_backward(message), message.model_id)

    @api.post("/forward")
    async def forward(request: Request) -> dict[str, Any]:
        message = forward_message(await read_body(request))
        return _pending(training.forward_backward(message), message.model_id)

    @api.post("/optim_step")
    async def optim_step(request: wire.OptimStepRequest) -> dict[str, Any]:
        return _pending(training.optim_step(request), request.model_id)


def _add_saving_routes(api: APIRouter, saving: Saving) -> None:
    @api.post("/save_weights")
    async def save_weights(request: wire.SaveWeightsRequest) -> dict[str, Any]:
        return _pending(saving.state(request), request.model_id)

    @api.post("/save_weights_for_sampler")
    async def save_weights_for_sampler(
        request: wire.SaveWeightsForSamplerRequest,
    ) -> dict[str, Any]:
        return _pending(saving.for_sampler(request), request.model_id)

    @api.post("/save_weights_external")
    async def save_weights_external(request: wire.SaveWeightsExternalRequest) -> dict[str, Any]:
        return _pending(saving.external(request), request.model_id)


def _add_sampling_routes(api: APIRouter, samplers: Samplers) -> None:
    @api.post("/create_sampling_session")
    async def create_sampling_session(
        request: wire.CreateSamplingSessionRequest,
    ) -> dict[str, str]:
        sampler_id = samplers.create(request)
        return {"type": "create_sampling_session", "sampling_session_id": sampler_id}

    @api.get("/samplers/{sampler_id}")
    async def get_sampler(sampler_id: str) -> dict[str, Any]:
        found = samplers.find(sampler_id)
        return {
            "sampler_id": sampler_id,
            "base_model": found.base_model,
            "model_path": found.model_path,
        }

    @api.post("/join_sampling_session")
    async def join_sampling_session(request: wire.JoinSamplingSessionRequest) -> dict[str, Any]:
        number = samplers.join(request.sampling_session_id)
        return {"type": "join_sampling_session", "client_counter": number}

    @api.post("/cancel_future")
    async def cancel_future(request: wire.CancelFutureRequest) -> dict[str, Any]:
        samplers.cancel(request.request_id)
        return {}

    @api.post("/asample")
    async def asample(request: wire.SampleRequest) -> dict[str, Any]:
        promise = samplers.sample(request)
        sequence_ids = [f"{promise.request_id}:{i}" for i in range(request.num_samples)]
        return _pending(promise) | {"sample_sequence_ids": sequence_ids}


def _add_future_route(api: APIRouter, core: Core) -> None:
    @api.post("/retrieve_future")
    async def retrieve_future(body: wire.RetrieveFutureRequest, request: Request) -> Response:
        bind_contextvars(request_id=body.request_id)
        promise = core.promises.get(body.request_id)
        if promise is None:
            return _forgotten(core, body.request_id, request.headers.get("x-tinker-request-type"))
        result = await promise.wait(LONG_POLL_S)
        if result is None:
            waiting = {"type": "try_again", "request_id": body.request_id, "queue_state": "active"}
            return JSONResponse(waiting, status_code=408)
        core.promises.note_fetched(body.request_id, result)
        if isinstance(result, Failure):
            return JSONResponse({"error": result.message, "category": result.category})
        if isinstance(result, JsonResult):
            return JSONResponse(result.value)
        return Response(result.data, media_type=PROTOBUF)


def _pending(promise: Promise, model_id: str | None = None) -> dict[str, Any]:
    # Begins with the ids of session and model; what goes wrong later is logged under it as well.
    bind_contextvars(request_id=promise.request_id)
    answer: dict[str, Any] = {"request_id": promise.request_id}
    return answer if model_id is None else answer | {"model_id": model_id}


def _forgotten(core: Core, request_id: str, request_type: str | None) -> Response:
    # 410 makes the client sample again, which is harmless; a training request must not be
    # repeated by itself, and 404 ends it.
    message = f"request {request_id!r} is unknown to this server"
    model_id, _, _ = request_id.rpartition(":")
    if not core.sequencer.is_open(model_id) and core.store.run(model_id) is not None:
        message += f": {core.lost_model(model_id)}"
    else:
        message += "; its answer was fetched long ago, or the server was restarted"
    return JSONResponse({"error": message}, status_code=410 if request_type == "Sample" else 404)


async def _forward_backward(request: Request) -> pb.ForwardBackwardRequest:
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith((PROTOBUF, JSON)):
        raise TinsmithError(
            f"forward_backward must be sent as {PROTOBUF} or {JSON}, got content-type "
            f"{content_type!r}"
        )
    body = await read_body(request)
    if content_type.startswith(JSON):
        return forward_backward_message(body)
    try:
        return pb.ForwardBackwardRequest.FromString(body)
    except DecodeError as error:
        raise TinsmithError(
            f"forward_backward: the body is not a valid message: {error}"
        ) from error
