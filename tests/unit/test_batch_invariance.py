"""On a CPU in float32 what else is sampled changes no bit of a completion."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.batches import NO_LIMIT, Client, finish, request
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.backend.sampling.request import SamplingRequest, SamplingResult

SIZES = {"num_hidden_layers": 2, "initializer_range": 0.1, "max_position_embeddings": 2048}


def wide() -> Qwen3ForCausalLM:
    """Products over so many inputs that oneDNN would split those of a single row."""
    config = Qwen3Config(
        vocab_size=500, hidden_size=64, intermediate_size=1600, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, **SIZES,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def odd() -> Qwen2ForCausalLM:
    """Sizes that no width of a vector unit divides, and biases."""
    config = Qwen2Config(
        vocab_size=401, hidden_size=84, intermediate_size=99, num_attention_heads=7,
        num_key_value_heads=1, **SIZES,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="module", params=[wide, odd])
def model(request: pytest.FixtureRequest) -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = request.param().eval().requires_grad_(False)
    return BaseModel("random", "", module, _NoTokenizer(), 2048, (0,))


class _NoTokenizer:
    decode = staticmethod(lambda tokens: str(tokens))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, threads_are_put_back: None) -> int:
    torch.set_num_threads(request.param)
    return request.param


def ask() -> list[SamplingRequest]:
    """Ragged prompts on both sides of every length at which a kernel changes its ways."""
    rng = np.random.default_rng(1)
    sizes = (1, 5, 31, 33, 64, 250, 500, 20, 20, 640)
    asked = [
        request(rng.integers(0, 400, size).tolist(), int(tokens), seed=i, num_samples=1 + i % 3)
        for i, (size, tokens) in enumerate(
            zip(sizes, (24, 40, 2, 16, 9, 24, 20, 1, 24, 6), strict=True)
        )
    ]
    asked[4] = replace(asked[4], temperature=0.6, top_k=20, topk_sample_logprobs=3)
    return [replace(one, wants_prompt_logprobs=True) for one in asked]


def run(
    model: BaseModel, asked: Sequence[SamplingRequest], waits: Callable[[int], int], **limits: int
) -> list[SamplingResult]:
    """The results of requests, each of which comes `waits` steps after the one before it."""
    bounds: dict[str, Any] = {"token_budget": 8192, "max_tokens_kept": NO_LIMIT} | limits
    batch = SamplingBatch(model, make_replica(model, None), **bounds)
    clients = [Client(one) for one in asked]
    for number, client in enumerate(clients):
        batch.add(client.job)
        for _ in range(waits(number)):
            batch.step()
    finish(batch)
    return [client.results[0] for client in clients]


def assert_same_bits(one: SamplingResult, other: SamplingResult) -> None:
    for mine, theirs in zip(one.sequences, other.sequences, strict=True):
        assert mine.tokens == theirs.tokens
        assert mine.logprobs == theirs.logprobs
        if mine.top is not None and theirs.top is not None:
            assert np.array_equal(mine.top.logprobs, theirs.top.logprobs)
    assert one.prompt.logprobs is not None
    assert other.prompt.logprobs is not None
    assert np.array_equal(one.prompt.logprobs, other.prompt.logprobs, equal_nan=True)


def test_company_in_the_batch_changes_no_bit_of_tokens_and_log_probabilities(
    model: BaseModel, threads: int
):
    asked = ask()
    alone = [run(model, [one], lambda _: 0)[0] for one in asked]
    together = run(model, asked, lambda _: 0)
    joining = run(model, asked[::-1], lambda number: number % 4)[::-1]
    narrow = run(model, asked, lambda number: number % 2, token_budget=300, max_tokens_kept=4000)
    for company in (together, joining, narrow):
        for one, other in zip(alone, company, strict=True):
            assert_same_bits(one, other)
