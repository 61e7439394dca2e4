"""The routes of OpenAI's API under /v1: any client of it can talk to a base model or to a
checkpoint, also while its run trains on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from structlog.contextvars import bind_contextvars

from tinsmith.backend.completions import Answer, Completions, Source
from tinsmith.backend.core import Core
from tinsmith.backend.sampling.request import SamplingRequest, SamplingResult
from tinsmith.backend.wire.errors import openai_error, status_of
from tinsmith.backend.wire.openai_answers import Writer
from tinsmith.backend.wire.openai_forms import ChatForm, CompletionForm
from tinsmith.backend.wire.openai_requests import ChatRequest, CompletionRequest, SamplingBody
from tinsmith.backend.wire.openai_sampling import Defaults, chat_sampling, completion_samplings
from tinsmith.chat import Chat
from tinsmith.errors import TinsmithError

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is there to read it
log = structlog.stdlib.get_logger(__name__)


def add_openai_routes(root: APIRouter, core: Core) -> None:
    """Chats, completions and the models that there are."""
    api = APIRouter(prefix="/v1")
    completions = Completions(core)
    defaults = Defaults(core.settings.min_p, completions.next_seed)
    _add_model_routes(api, core, completions)

    @cache
    def chat_of(base_model: str) -> Chat:
        return Chat(core.base(base_model).tokenizer)

    @api.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        source = _find(completions, body)
        sampling = chat_sampling(body, source.base, chat_of(source.base.name), defaults)
        writer = Writer(ChatForm(), body, [sampling], source.base.tokenizer)
        return await _answer(completions, source, [sampling], writer, body, request)

    @api.post("/completions")
    async def bare_completions(body: CompletionRequest, request: Request) -> Response:
        source = _find(completions, body)
        tokenizer = source.base.tokenizer
        samplings = completion_samplings(body, source.base, defaults)
        echoes = None
        if body.echo:
            texts = (one if isinstance(one, str) else tokenizer.decode(one) for one in body.prompt)
            echoes = list(texts)
        writer = Writer(CompletionForm(), body, samplings, tokenizer, echoes)
        return await _answer(completions, source, samplings, writer, body, request)

    root.include_router(api)


def _add_model_routes(api: APIRouter, core: Core, completions: Completions) -> None:
    def describe(model: str, source: Source) -> dict[str, Any]:
        """`parent` and `max_model_len` are additions, by the names that vLLM gave them."""
        checkpoint = source.checkpoint
        time = datetime.fromisoformat(checkpoint.time).timestamp() if checkpoint else 0
        return {
            "id": model,
            "object": "model",
            "created": int(time),
            "owned_by": "local",
            "parent": source.base.name if checkpoint else None,
            "max_model_len": source.base.context_length,
        }

    @api.get("/models")
    async def models() -> dict[str, Any]:
        found = [describe(name, Source(base)) for name, base in core.bases.items()]
        for checkpoint in completions.checkpoints():
            run = core.store.run(checkpoint.model_id)
            if run is not None and run.base_model in core.bases:
                source = Source(core.base(run.base_model), checkpoint, run.lora)
                found.append(describe(checkpoint.path, source))
        return {"object": "list", "data": found}

    @api.get("/models/{model:path}")
    async def one_model(model: str) -> dict[str, Any]:
        return describe(model, completions.find(model))


def _find(completions: Completions, body: SamplingBody) -> Source:
    if body.user:
        bind_contextvars(user=body.user)
    bind_contextvars(model=body.model)
    return completions.find(body.model)


async def _answer(
    completions: Completions,
    source: Source,
    samplings: Sequence[SamplingRequest],
    writer: Writer,
    body: SamplingBody,
    request: Request,
) -> Response:
    answer = completions.ask(source, samplings, is_watched=body.stream)
    if body.stream:
        return StreamingResponse(_stream(answer, writer), media_type="text/event-stream")
    try:
        results = await _unless_closed(request, answer.results)
    finally:
        answer.close()
    if results is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(writer.whole(results))


async def _unless_closed(
    request: Request, work: Callable[[], Coroutine[Any, Any, list[SamplingResult]]]
) -> list[SamplingResult] | None:
    """What `work` returns; None if the client closes the connection before that."""

    async def until_closed() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work()), asyncio.create_task(until_closed())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


async def _stream(answer: Answer, writer: Writer) -> AsyncIterator[str]:
    """Server-sent events: a chunk each, then the end. An error, once the status is sent, is an
    event too."""
    try:
        async for i, sample, event in answer.events():
            if not isinstance(event, SamplingResult):
                for chunk in writer.chunks(i, sample, event):
                    yield _event(chunk)
        for chunk in writer.last_chunks():
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except TinsmithError as error:
        yield _event({"error": openai_error(status_of(error), str(error))})
    finally:
        answer.close()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
