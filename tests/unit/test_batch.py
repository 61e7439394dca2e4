"""Continuous batching without a server: admission, and what company changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.batches import REQUESTS, Client, alone, assert_same, finish, make_batch, request
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.sampling.batch import MAX_PREFILLS
from tinsmith.backend.sampling.keys_values import RunningKeysValues
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues


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


@pytest.mark.parametrize("block_rows", [1, 2, 5])
def test_the_size_of_a_block_of_logits_changes_no_bit(base: BaseModel, block_rows: int):
    asked = replace(REQUESTS[0], num_samples=9, wants_prompt_logprobs=True)
    found = []
    for size in (None, block_rows):
        batch, _ = make_batch(base, block_rows=size)
        client = Client(asked)
        batch.add(client.job)
        finish(batch)
        found.append(client)
    one, two = (client.results[0] for client in found)
    assert one.sequences == two.sequences
    assert np.array_equal(one.prompt.logprobs, two.prompt.logprobs, equal_nan=True)


def count_prefills(replica: PreTrainedModel) -> list[int]:
    """A list that grows by the number of tokens of each prefill."""
    counts: list[int] = []

    def note(_: nn.Module, __: tuple, settings: dict[str, Tensor]) -> None:
        length = settings["input_ids"].shape[1]
        if length > 1:
            counts.append(length)

    backbone(replica).register_forward_pre_hook(note, with_kwargs=True)
    return counts


def test_a_request_of_many_samples_is_admitted_in_portions_that_fit_after_one_prefill(
    base: BaseModel,
):
    asked = request(range(20, 60), 10, seed=6, num_samples=70)
    batch, _ = make_batch(base)
    whole = Client(asked)
    batch.add(whole.job)
    finish(batch)

    most_rows = 12
    batch, replica = make_batch(base, max_tokens_kept=most_rows * 50)
    prefills = count_prefills(replica)
    client, behind = Client(asked), Client(REQUESTS[0])
    batch.add(client.job)
    batch.add(behind.job)
    sampled = []
    while not batch.is_idle:
        sampled.append(batch.step())
    assert max(sampled) <= 2 * most_rows, "a first token each, and the next"
    assert prefills == [40, len(REQUESTS[0].prompt)]
    assert_same(client.completions, whole.completions)
    assert_same(behind.completions, alone(base)[0])


def test_prompts_are_prefilled_a_few_at_a_time_while_others_get_their_tokens(base: BaseModel):
    batch, replica = make_batch(base, token_budget=64)
    prefills = count_prefills(replica)
    clients = [Client(request(range(10, 70), 3, seed=seed)) for seed in range(20)]
    for client in clients:
        batch.add(client.job)
    batch.step()
    assert prefills == [60] * MAX_PREFILLS
    assert not clients[0].results
    batch.step()
    assert clients[0].results, "it ended while most of the others wait for their prefill"
    finish(batch)
    assert all(client.results for client in clients)


def test_slots_of_many_short_rows_do_not_grow_to_the_length_of_a_long_one():
    def prompt(size: int) -> PromptKeysValues:
        found = PromptKeysValues([size], torch.device("cpu"))
        found.update(torch.randn(1, 2, size, 4), torch.randn(1, 2, size, 4), 0)
        return found

    bound = 100 * 64
    running = RunningKeysValues(torch.device("cpu"), bound)
    running.admit(range(100), prompt(10), 0, 10)
    running.begin_step([10] * 2)  # the others have ended
    long = prompt(400)
    running.admit([2], long, 0, 400)
    running.begin_step([11, 11, 400])
    token = torch.zeros(3, 2, 1, 4)
    keys, values = running.update(token, token, 0)
    _, long_keys, long_values = next(long.of(0))
    assert torch.equal(keys[2, :, :400], long_keys.transpose(0, 1))
    assert torch.equal(values[2, :, :400], long_values.transpose(0, 1))
    assert keys.untyped_storage().nbytes() <= bound * 2 * 4 * keys.itemsize
    running.begin_step([12])  # the long one has ended
    running.admit(range(1, 90), prompt(10), 0, 10)
    keys, _ = running.update(token[:1], token[:1], 0)
    assert keys.untyped_storage().nbytes() <= bound * 2 * 4 * keys.itemsize
