"""Continuous batching without a server: admission, company, and what happens when it fails."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tinsmith.backend.base_model import BaseModel, backbone
from tinsmith.backend.sampling.batch import Job, SamplingBatch
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
    base: BaseModel, token_budget: int = 8192, max_tokens_kept: int = NO_LIMIT
) -> tuple[SamplingBatch, PreTrainedModel]:
    replica = make_replica(base, None)
    return SamplingBatch(base, replica, token_budget, max_tokens_kept), replica


def finish(batch: SamplingBatch) -> None:
    for _ in range(1000):
        if batch.is_idle:
            return
        batch.step()
    raise AssertionError("the batch never became idle")


def alone(base: BaseModel) -> list[list[Completion]]:
    found = []
    for asked in REQUESTS:
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


@pytest.mark.parametrize("token_budget", [1, 70, 8192])
def test_rows_that_join_at_any_time_get_the_same_tokens_as_alone(
    base: BaseModel, token_budget: int
):
    expected = alone(base)
    batch, _ = make_batch(base, token_budget)
    clients = [Client(asked) for asked in REQUESTS]
    for wait, client in zip((3, 0, 1, 4, 2), clients, strict=True):
        batch.add(client.job)
        for _ in range(wait):
            batch.step()
    finish(batch)
    for client, truth in zip(clients, expected, strict=True):
        assert_same(client.completions, truth)


def test_a_full_cache_makes_requests_wait_and_changes_nothing(base: BaseModel):
    expected = alone(base)
    batch, _ = make_batch(base, max_tokens_kept=150)
    clients = [Client(asked) for asked in REQUESTS]
    for client in clients:
        batch.add(client.job)
    batch.step()
    assert not clients[3].results, "its prompt of 64 tokens does not fit yet"
    finish(batch)
    for client, truth in zip(clients, expected, strict=True):
        assert_same(client.completions, truth)


def test_a_request_larger_than_the_cache_runs_by_itself(base: BaseModel):
    batch, _ = make_batch(base, max_tokens_kept=10)
    client = Client(REQUESTS[2])
    batch.add(client.job)
    finish(batch)
    assert_same(client.completions, alone(base)[2])


class OutOfMemory(nn.Module):
    def forward(self, **_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("steps_before", [0, 4])
def test_everyone_is_told_when_a_step_fails_and_the_batch_can_go_on(
    base: BaseModel, steps_before: int
):
    batch, replica = make_batch(base)
    clients = [Client(asked) for asked in (REQUESTS[0], REQUESTS[2], REQUESTS[4])]
    batch.add(clients[0].job)
    batch.add(clients[1].job)
    for _ in range(steps_before):
        batch.step()
    batch.add(clients[2].job)
    working = backbone(replica)
    setattr(replica, replica.base_model_prefix, OutOfMemory())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        batch.step()
    batch.fail_all(caught.value)
    assert [client.errors for client in clients] == [[caught.value]] * 3
    assert batch.is_idle

    setattr(replica, replica.base_model_prefix, working)
    again = Client(REQUESTS[0])
    batch.add(again.job)
    finish(batch)
    assert_same(again.completions, alone(base)[0])
