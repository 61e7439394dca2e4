"""Every option of the real `openai` client is honoured, or refused in OpenAI's own form."""

import inspect
from typing import Any

import openai
import pytest
import tinker

from tests.clients import trained_client
from tests.openai_client import MESSAGES, chat
from tinsmith.backend.wire.openai_requests import NOT_OFFERED, ChatRequest, CompletionRequest

# Fields of the client that say how it sends, not what.
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def test_every_option_of_the_client_is_known_to_the_server(openai_client: openai.OpenAI):
    for create, body in (
        (openai_client.chat.completions.create, ChatRequest),
        (openai_client.completions.create, CompletionRequest),
    ):
        options = set(inspect.signature(create).parameters) - OF_THE_CLIENT
        assert options <= body.model_fields.keys() | NOT_OFFERED.keys()


@pytest.mark.parametrize("field", sorted(NOT_OFFERED))
def test_what_is_not_offered_is_refused_by_name_unless_it_asks_for_nothing(
    openai_client: openai.OpenAI, field: str
):
    neutral, reason = NOT_OFFERED[field]
    for value in (None, *neutral):
        assert chat(openai_client, "qwen3", max_tokens=1, extra_body={field: value}).choices
    with pytest.raises(openai.BadRequestError) as refused:
        chat(openai_client, "qwen3", max_tokens=1, extra_body={field: ["asked for"]})
    assert refused.value.param == field
    assert refused.value.type == "invalid_request_error"
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0, got -1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "got 3 and 2"),
        ({"max_tokens": 600}, None, "context of 512 tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"extra_body": {"min_p": 2}}, "min_p", "less than or equal to 1, got 2"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty", "is not a field"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs",
         "got chat_template"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role",
         "'system', 'user' or 'assistant'"),
        ({"messages": []}, "messages", "at least 1 item"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_with_field_rule_and_value(
    openai_client: openai.OpenAI, options: Any, param: str | None, message: str
):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        openai_client.chat.completions.create(
            **({"model": "qwen3", "messages": MESSAGES} | options)
        )
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "needs echo=true"),
        ({"prompt": [["x"]]}, "a text, token ids, or a list"),
        ({"prompt": [[1], [400]]}, "token ids must be 0 to 399, got 400"),
        ({"echo": True, "logprobs": 1, "stream": True}, "not streamed"),
        ({"best_of": 3}, "best_of is not offered"),
    ],
)
def test_bad_options_of_completions_are_refused(
    openai_client: openai.OpenAI, options: Any, message: str
):
    with pytest.raises(openai.BadRequestError, match=message):
        openai_client.completions.create(**({"model": "qwen3", "prompt": "1"} | options))


def test_wrong_keys_unknown_models_and_other_routes_are_refused_in_openais_form(
    openai_client: openai.OpenAI, service: tinker.ServiceClient
):
    run = trained_client(service, "qwen3", steps=0)
    external = run.save_weights_external("refused").result().path
    missing = f"tinker://{run.model_id}/sampler_weights/missing"
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        openai_client.with_options(api_key="tml-wrong").models.list()
    for model in ("gpt-4", missing):
        with pytest.raises(openai.NotFoundError, match=model):
            chat(openai_client, model)
    with pytest.raises(openai.BadRequestError, match="of kind external_weights"):
        chat(openai_client, external)
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings is not offered"):
        openai_client.embeddings.create(model="qwen3", input="x")
