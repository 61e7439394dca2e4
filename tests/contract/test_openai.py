"""The real `openai` client against the server: the same tokens as the Tinker SDK draws, streamed or
not; every option honoured or refused."""

import inspect
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tinker
from openai.types.chat import ChatCompletion
from tinker import types

from tests.clients import prompt_logprobs, train, trained_client
from tests.in_process import KEY, Served, serving
from tinsmith.backend import completions, queue
from tinsmith.backend.futures import Promise, Result
from tinsmith.backend.wire.openai_requests import NOT_OFFERED, ChatRequest, CompletionRequest
from tinsmith.serving import Endpoint

MESSAGES: Any = [
    {"role": "system", "content": "the answer"},
    {"role": "user", "content": [{"type": "text", "text": "What is the sum"}]},
    {"role": "assistant", "content": "1 + 1 = 2"},
    {"role": "user", "content": "of 3 + 4"},
]
PLAIN = [{**one, "content": "What is the sum"} if i == 1 else one for i, one in enumerate(MESSAGES)]
# Fields of the client that say how it sends, not what.
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
IDS = {"return_token_ids": True}


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that trains on, and what it saved on the way."""

    run: tinker.TrainingClient
    sampler: str
    state: str
    external: str


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def trained(service: tinker.ServiceClient) -> Trained:
    run = trained_client(service, "qwen3")
    sampler = run.save_weights_for_sampler("early").result().path
    state = run.save_state("early").result().path
    external = run.save_weights_external("early").result().path
    assert sampler is not None
    train(run, 2, seed=5)
    return Trained(run, sampler, state, external)


@pytest.fixture(scope="module")
def tokenizer(qwen3_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen3_dir)


def chat(client: openai.OpenAI, model: str, **options: Any) -> ChatCompletion:
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def float32s(values: Iterable[float]) -> list[float]:
    """As the SDK has them, which gets them in 32 bits."""
    return np.array(list(values), np.float32).tolist()


def token_ids(answer: Any) -> list[list[int]]:
    return [choice.token_ids for choice in answer.choices]


@pytest.mark.parametrize("kind", ["base", "sampler", "state"])
def test_a_chat_draws_what_a_sampling_client_draws_with_the_same_seed(
    client: openai.OpenAI,
    service: tinker.ServiceClient,
    trained: Trained,
    tokenizer: Any,
    kind: str,
):
    model = "qwen3" if kind == "base" else getattr(trained, kind)
    where: Any = {"base_model": model} if kind == "base" else {"model_path": model}
    prompt = tokenizer.apply_chat_template(PLAIN, add_generation_prompt=True, return_dict=False)
    drawing: Any = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 11, "max_tokens": 20}
    expected = service.create_sampling_client(**where).result().sample(
        types.ModelInput.from_ints(prompt), num_samples=3,
        sampling_params=types.SamplingParams(**drawing), topk_sample_logprobs=2,
    ).result().sequences  # fmt: skip

    extra = IDS | {"top_k": drawing.pop("top_k")}
    answer = chat(client, model, n=3, logprobs=True, top_logprobs=2, extra_body=extra, **drawing)

    assert answer.choices[0].prompt_token_ids == prompt  # pyright: ignore
    assert token_ids(answer) == [list(one.tokens) for one in expected]
    for choice, one in zip(answer.choices, expected, strict=True):
        assert choice.logprobs is not None
        scores = choice.logprobs.content or []
        assert float32s(score.logprob for score in scores) == list(one.logprobs or ())
        assert [score.token for score in scores] == [tokenizer.decode([t]) for t in one.tokens]
        assert choice.message.content == tokenizer.decode(one.tokens, skip_special_tokens=True)
        assert choice.finish_reason == one.stop_reason
        assert one.topk_logprobs is not None
        for score, likeliest in zip(scores, one.topk_logprobs, strict=True):
            found = [(top.token, np.float32(top.logprob)) for top in score.top_logprobs]
            assert found == [(tokenizer.decode([token]), value) for token, value in likeliest or ()]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in expected)


def test_a_checkpoint_answers_as_it_is_while_its_run_trains_on(
    client: openai.OpenAI, trained: Trained
):
    drawing = {"temperature": 0, "max_tokens": 16, "extra_body": IDS}
    early = token_ids(chat(client, trained.sampler, **drawing))
    train(trained.run, 3, seed=9)
    later = trained.run.save_weights_for_sampler("later").result().path
    assert later is not None
    assert token_ids(chat(client, trained.sampler, **drawing)) == early
    assert token_ids(chat(client, later, **drawing)) != early


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, trained: Trained, kind: str):
    drawing: Any = {
        "model": trained.sampler,
        "n": 2,
        "seed": 4,
        "max_tokens": 30,
        "extra_body": IDS,
    }
    create: Any
    if kind == "chat":
        create = client.chat.completions.create
        drawing |= {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    else:
        create = client.completions.create
        drawing |= {"prompt": ["1 + 1", "user"], "logprobs": 1}
    whole = create(**drawing)
    chunks = list(create(**drawing, stream=True, stream_options={"include_usage": True}))

    assert len(chunks) > 30
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for index, expected in enumerate(whole.choices):
        mine = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert [one.finish_reason for one in mine if one.finish_reason] == [expected.finish_reason]
        assert list(chain(*(one.token_ids for one in mine))) == expected.token_ids
        assert mine[0].prompt_token_ids == expected.prompt_token_ids
        scores = [one.logprobs.model_dump() for one in mine]
        everything = expected.logprobs.model_dump()
        for name, values in everything.items():
            assert values is None or list(chain(*(score[name] for score in scores))) == values, name
        if kind == "chat":
            text = "".join(one.delta.content or "" for one in mine)
            assert text == expected.message.content
            assert [one.delta.role for one in mine if one.delta.role] == ["assistant"]
        else:
            assert "".join(one.text for one in mine) == expected.text


def test_a_stop_string_ends_the_text_before_it_whole_and_streamed(
    client: openai.OpenAI, tokenizer: Any
):
    drawing: Any = {"model": "qwen3", "seed": 1, "max_tokens": 60, "prompt": "1 + 1"}
    free = client.completions.create(**drawing).choices[0].text
    stop = free[10:12]
    assert "\ufffd" not in stop, "choose another seed"
    choice = client.completions.create(**drawing, stop=[stop, "never"]).choices[0]
    assert choice.text == free[: free.find(stop)]
    assert choice.finish_reason == "stop"
    streamed = client.completions.create(**drawing, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_scores_prompts_as_the_sdk_does(
    client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: Any, max_tokens: int
):
    texts = ["What is the sum of 1 + 1", "user"]
    prompts = [tokenizer.encode(text) for text in texts]
    sampler = service.create_sampling_client(base_model="qwen3").result()
    answers = [
        client.completions.create(model="qwen3", prompt=given, max_tokens=max_tokens, echo=True,
                                  logprobs=2, temperature=0)
        for given in (texts, prompts)
    ]  # fmt: skip
    assert answers[0].choices == answers[1].choices
    for text, tokens, choice in zip(texts, prompts, answers[0].choices, strict=True):
        scores = choice.logprobs
        assert scores is not None
        assert scores.tokens
        assert scores.token_logprobs
        assert scores.text_offset
        assert choice.text.startswith(text)
        assert len(scores.tokens) == len(tokens) + max_tokens
        assert "".join(scores.tokens[: len(tokens)]) == text
        found = float32s(value or 0.0 for value in scores.token_logprobs[1 : len(tokens)])
        assert scores.token_logprobs[0] is None
        assert found == prompt_logprobs(sampler, tokens)
        assert scores.text_offset[: len(tokens)] == [
            len(tokenizer.decode(tokens[:i])) for i in range(len(tokens))
        ]
        assert scores.top_logprobs is not None
        for token, logprob, top in zip(
            scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True
        ):
            assert 1 <= len(top) <= 3  # some have the same text
            assert top[token] >= logprob
    assert answers[0].usage is not None
    assert answers[0].usage.completion_tokens == 2 * max_tokens


def test_the_models_are_the_bases_and_what_can_be_sampled_from(
    client: openai.OpenAI, trained: Trained
):
    models = {model.id: model for model in client.models.list()}
    assert {"qwen3", "llama", trained.sampler, trained.state} <= models.keys()
    assert trained.external not in models
    assert client.models.retrieve(trained.sampler) == models[trained.sampler]
    assert abs(models[trained.sampler].created - time.time()) < 3600


def test_every_option_of_the_client_is_known_to_the_server(client: openai.OpenAI):
    for create, body in (
        (client.chat.completions.create, ChatRequest),
        (client.completions.create, CompletionRequest),
    ):
        options = set(inspect.signature(create).parameters) - OF_THE_CLIENT
        assert options <= body.model_fields.keys() | NOT_OFFERED.keys()


@pytest.mark.parametrize("field", sorted(NOT_OFFERED))
def test_what_is_not_offered_is_refused_by_name_unless_it_asks_for_nothing(
    client: openai.OpenAI, field: str
):
    neutral, reason = NOT_OFFERED[field]
    for value in (None, *neutral):
        assert chat(client, "qwen3", max_tokens=1, extra_body={field: value}).choices
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, "qwen3", max_tokens=1, extra_body={field: ["asked for"]})
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
    client: openai.OpenAI, options: Any, param: str | None, message: str
):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(**({"model": "qwen3", "messages": MESSAGES} | options))
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
def test_bad_options_of_completions_are_refused(client: openai.OpenAI, options: Any, message: str):
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(**({"model": "qwen3", "prompt": "1"} | options))


def test_wrong_keys_unknown_models_and_other_routes_are_refused_in_openais_form(
    client: openai.OpenAI, trained: Trained
):
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        client.with_options(api_key="tml-wrong").models.list()
    for model in ("gpt-4", f"{trained.sampler}-not"):
        with pytest.raises(openai.NotFoundError, match=model):
            chat(client, model)
    with pytest.raises(openai.BadRequestError, match="of kind external_weights"):
        chat(client, trained.external)
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings is not offered"):
        client.embeddings.create(model="qwen3", input="x")


def num_sampled(endpoint: Endpoint) -> float:
    """Tokens that the server has sampled, once it is at rest."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    while True:
        text = httpx.get(f"{endpoint.base_url}/metrics", headers=headers).text
        lines = (line.split(" ") for line in text.splitlines() if line[0] != "#")
        values = {name: float(value) for name, value in lines}
        if values["tinsmith_completions_running"] + values["tinsmith_operations_waiting"] == 0:
            return values["tinsmith_sampled_tokens_total"]
        time.sleep(0.02)


def test_a_client_that_goes_away_ends_its_work(client: openai.OpenAI, endpoint: Endpoint):
    drawing: Any = {"seed": 2, "n": 16, "max_tokens": 400}
    counts = [num_sampled(endpoint)]
    chat(client, "qwen3", **drawing)
    counts.append(num_sampled(endpoint))
    with chat(client, "qwen3", stream=True, **drawing) as stream:  # pyright: ignore
        assert next(iter(stream)).choices
    counts.append(num_sampled(endpoint))
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(max_retries=0), "qwen3", timeout=0.2, **drawing)
    counts.append(num_sampled(endpoint))
    whole, streamed, timed_out = np.diff(counts)
    assert 0 < streamed < whole / 2
    assert timed_out < whole


@pytest.fixture
def served(qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serving(qwen3_dir, tmp_path / "store") as served:
        yield served


def die() -> Result:
    raise SystemExit("the disk is gone")


def test_few_weights_are_held_a_path_is_what_it_names_now_and_failures_end_a_stream(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(completions, "MAX_HELD", 1)
    client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY, max_retries=0)
    drawing: Any = {"temperature": 0, "max_tokens": 12}
    with served.client() as service:
        run = trained_client(service, "qwen3")
        saved = [run.save_weights_for_sampler(f"at-{i}").result().path for i in range(3)]
        state = run.save_state("last").result().path
        first = [chat(client, str(path), **drawing).choices for path in saved]
        assert first[0] == first[1] == first[2]
        num_kept = 2  # the one held, and the next one to be let go
        assert len(list(served.core.store.directory.glob("snapshots/*/openai*"))) <= num_kept
        before = chat(client, state, **drawing).choices
        train(run, 3, seed=7)
        run.save_state("last", overwrite=True).result()
        assert chat(client, state, **drawing).choices != before
        tinker.RestClient(base_url=served.base_url, api_key=KEY).delete_checkpoint_from_tinker_path(
            state
        ).result()
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            chat(client, state)

        monkeypatch.setattr(queue, "MAX_QUEUED", 1)
        stream = chat(client, "qwen3", stream=True, n=64, max_tokens=450)
        with pytest.raises(openai.RateLimitError, match="at most 1"):
            chat(client, "qwen3", max_tokens=1)
        open_promise = served.core.promises.get(f"{run.model_id}:0")
        assert open_promise is not None
        served.core.engine.submit("test", die, Promise("test", open_promise._loop))
        with pytest.raises(openai.APIError, match="engine has stopped"):
            list(stream)


def test_a_model_without_a_chat_template_completes_and_does_not_chat(
    tmp_path: Path, served: Served
):
    served.core.bases["qwen3"].tokenizer.chat_template = None
    client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY)
    with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
        chat(client, "qwen3")
    assert client.completions.create(model="qwen3", prompt="1 + 1").usage.completion_tokens  # pyright: ignore


def test_the_snippets_of_the_guide_run(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]):
    text = (Path(__file__).parents[2] / "docs/openai.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet.replace("Qwen3-0.6B", "qwen3"), names)
    assert len(snippets) == 4
    said = capsys.readouterr().out
    assert "\nqwen3\n" in said
    assert "[None, -" in said


def test_min_p_of_a_request_is_honoured(client: openai.OpenAI):
    whole = chat(client, "qwen3", max_tokens=20, extra_body=IDS | {"min_p": 1}, seed=1)
    greedy = chat(client, "qwen3", max_tokens=20, extra_body=IDS, temperature=0)
    free = chat(client, "qwen3", max_tokens=20, extra_body=IDS, seed=1)
    assert token_ids(whole) == token_ids(greedy) != token_ids(free)


def test_a_servers_seed_decides_where_requests_bring_none(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    drawn = []
    for start in range(2):
        with serving(qwen3_dir, tmp_path / str(start), seed=5) as served:
            client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY)
            drawn += [token_ids(chat(client, "qwen3", max_tokens=9, extra_body=IDS)) for _ in "ab"]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]
