"""The real `openai` client against the server: the same tokens as the Tinker SDK draws, streamed or
not."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tinker
from tinker import types

from tests.clients import prompt_logprobs, train, trained_client
from tests.openai_client import IDS, MESSAGES, chat, token_ids
from tinsmith.serving import Endpoint

PLAIN = [{**one, "content": "What is the sum"} if i == 1 else one for i, one in enumerate(MESSAGES)]


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that trains on, and what it saved on the way."""

    run: tinker.TrainingClient
    sampler: str
    state: str
    external: str


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


def float32s(values: Iterable[float]) -> list[float]:
    """As the SDK has them, which gets them in 32 bits."""
    return np.array(list(values), np.float32).tolist()


@pytest.mark.parametrize("kind", ["base", "sampler", "state"])
def test_a_chat_draws_what_a_sampling_client_draws_with_the_same_seed(
    openai_client: openai.OpenAI,
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
    answer = chat(
        openai_client, model, n=3, logprobs=True, top_logprobs=2, extra_body=extra, **drawing
    )

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
    openai_client: openai.OpenAI, trained: Trained
):
    drawing = {"temperature": 0, "max_tokens": 16, "extra_body": IDS}
    early = token_ids(chat(openai_client, trained.sampler, **drawing))
    train(trained.run, 3, seed=9)
    later = trained.run.save_weights_for_sampler("later").result().path
    assert later is not None
    assert token_ids(chat(openai_client, trained.sampler, **drawing)) == early
    assert token_ids(chat(openai_client, later, **drawing)) != early


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_is_the_whole_answer_in_pieces(
    openai_client: openai.OpenAI, trained: Trained, kind: str
):
    drawing: Any = {
        "model": trained.sampler,
        "n": 2,
        "seed": 4,
        "max_tokens": 30,
        "extra_body": IDS,
    }
    create: Any
    if kind == "chat":
        create = openai_client.chat.completions.create
        drawing |= {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    else:
        create = openai_client.completions.create
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
    openai_client: openai.OpenAI, tokenizer: Any
):
    drawing: Any = {"model": "qwen3", "seed": 1, "max_tokens": 60, "prompt": "1 + 1"}
    free = openai_client.completions.create(**drawing).choices[0].text
    stop = free[10:12]
    assert "\ufffd" not in stop, "choose another seed"
    choice = openai_client.completions.create(**drawing, stop=[stop, "never"]).choices[0]
    assert choice.text == free[: free.find(stop)]
    assert choice.finish_reason == "stop"
    streamed = openai_client.completions.create(**drawing, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_scores_prompts_as_the_sdk_does(
    openai_client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: Any, max_tokens: int
):
    texts = ["What is the sum of 1 + 1", "user"]
    prompts = [tokenizer.encode(text) for text in texts]
    sampler = service.create_sampling_client(base_model="qwen3").result()
    asked: Any = {"max_tokens": max_tokens, "echo": True, "logprobs": 2, "temperature": 0}
    create = openai_client.completions.create
    answers = [create(model="qwen3", prompt=given, **asked) for given in (texts, prompts)]
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
    openai_client: openai.OpenAI, trained: Trained
):
    models = {model.id: model for model in openai_client.models.list()}
    assert {"qwen3", "llama", trained.sampler, trained.state} <= models.keys()
    assert trained.external not in models
    assert openai_client.models.retrieve(trained.sampler) == models[trained.sampler]
    assert abs(models[trained.sampler].created - time.time()) < 3600


def test_min_p_of_a_request_is_honoured(openai_client: openai.OpenAI):
    whole = chat(openai_client, "qwen3", max_tokens=20, extra_body=IDS | {"min_p": 1}, seed=1)
    greedy = chat(openai_client, "qwen3", max_tokens=20, extra_body=IDS, temperature=0)
    free = chat(openai_client, "qwen3", max_tokens=20, extra_body=IDS, seed=1)
    assert token_ids(whole) == token_ids(greedy) != token_ids(free)


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
