"""Requests for a batch of completions, who asks them, and what each gets alone."""

from collections.abc import Sequence

import pytest
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.decode_steps import Recording
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.backend.sampling.request import Completion, SamplingRequest, SamplingResult

NO_LIMIT = 1 << 30


def request(prompt: Sequence[int], max_tokens: int, seed: int = 0, num_samples: int = 1):
    return SamplingRequest(tuple(prompt), num_samples, max_tokens, 1.0, -1, 1.0, seed, frozenset())


REQUESTS = [
    request([5, 6, 7], 9, seed=1, num_samples=3),
    request(range(10, 90), 2, seed=2),
    request([5], 70, seed=3, num_samples=2),
    request(range(3, 67), 1, seed=4),
    request([8, 9], 30, seed=5),
]


class Client:
    """Waits for the result of one request."""

    def __init__(self, request: SamplingRequest) -> None:
        self.results: list[SamplingResult] = []
        self.errors: list[BaseException] = []
        self.job = Job(request, self.results.append, self.errors.append)

    @property
    def completions(self) -> list[Completion]:
        [result] = self.results
        assert not self.errors
        return result.sequences


def make_batch(
    base: BaseModel,
    token_budget: int = 8192,
    max_tokens_kept: int = NO_LIMIT,
    block_rows: int | None = None,
    recording: Recording | None = None,
) -> tuple[SamplingBatch, PreTrainedModel]:
    replica = make_replica(base, None)
    bounds = token_budget, max_tokens_kept, block_rows
    return SamplingBatch(base, replica, *bounds, recording), replica


def finish(batch: SamplingBatch) -> None:
    for _ in range(1000):
        if batch.is_idle:
            return
        batch.step()
    raise AssertionError("the batch never became idle")


def alone(
    base: BaseModel, requests: Sequence[SamplingRequest] = REQUESTS
) -> list[list[Completion]]:
    found = []
    for asked in requests:
        batch, _ = make_batch(base)
        client = Client(asked)
        batch.add(client.job)
        finish(batch)
        found.append(client.completions)
    return found


def assert_same(one: list[Completion], two: list[Completion]) -> None:
    assert [c.tokens for c in one] == [c.tokens for c in two]
    for a, b in zip(one, two, strict=True):
        assert a.stop_reason == b.stop_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
