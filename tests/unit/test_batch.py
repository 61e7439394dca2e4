"""Continuous batching without a server: admission, company, and what happens when it fails."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.sampling.batch import MAX_PREFILLS, SamplingBatch
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.keys_values import PromptKeysValues, RunningKeysValues
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
) -> tuple[SamplingBatch, PreTrainedModel]:
    replica = make_replica(base, None)
    return SamplingBatch(base, replica, token_budget, max_tokens_kept, block_rows), replica


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
    """A list that grows by the number of rows of each prefill."""
    counts: list[int] = []

    def note(_: nn.Module, __: tuple, settings: dict[str, Tensor]) -> None:
        rows, length = settings["input_ids"].shape
        if length > 1:
            counts.append(rows)

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
    assert prefills == [1, 1]
    assert_same(client.completions, whole.completions)
    assert_same(behind.completions, alone(base)[0])


def test_prompts_are_prefilled_a_few_at_a_time_while_others_get_their_tokens(base: BaseModel):
    batch, replica = make_batch(base, token_budget=64)
    prefills = count_prefills(replica)
    clients = [Client(request(range(10, 60), 3, seed=seed)) for seed in range(20)]
    for client in clients:
        batch.add(client.job)
    batch.step()
    assert prefills == [1] * MAX_PREFILLS
    assert not clients[0].results
    batch.step()
    assert clients[0].results, "it ended while most of the others wait for their prefill"
    finish(batch)
    assert all(client.results for client in clients)


def test_slots_of_many_short_rows_do_not_grow_to_the_length_of_a_long_one():
    def prompt(size: int) -> PromptKeysValues:
        found = PromptKeysValues()
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
    assert torch.equal(keys[2, :, :400], long.layers[0][0][0])
    assert torch.equal(values[2, :, :400], long.layers[0][1][0])
    assert keys.untyped_storage().nbytes() <= bound * 2 * 4 * keys.itemsize
    running.begin_step([12])  # the long one has ended
    running.admit(range(1, 90), prompt(10), 0, 10)
    keys, _ = running.update(token[:1], token[:1], 0)
    assert keys.untyped_storage().nbytes() <= bound * 2 * 4 * keys.itemsize


@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_a_cancelled_request_leaves_the_batch_and_changes_nobody_elses_tokens(
    base: BaseModel, steps_before: int
):
    expected = alone(base)
    batch, _ = make_batch(base, max_tokens_kept=700)
    clients = [Client(asked) for asked in REQUESTS]
    for client in clients:
        batch.add(client.job)
    for _ in range(steps_before):
        batch.step()
    for cancelled in (0, 2):
        batch.cancel(clients[cancelled].job)
    finish(batch)
    for number in (0, 2):
        assert not clients[number].results
        assert not clients[number].errors
    for number in (1, 3, 4):
        assert_same(clients[number].completions, expected[number])


def test_a_cancelled_request_frees_its_room_at_once(base: BaseModel):
    batch, _ = make_batch(base, max_tokens_kept=300)
    large = Client(request([5, 6], 200, num_samples=50))
    small = Client(request([7], 1))
    batch.add(large.job)
    batch.add(small.job)
    batch.step()
    assert not small.results
    batch.cancel(large.job)
    batch.step()
    assert small.results
    assert batch.is_idle


def test_after_new_weights_a_running_row_goes_on_with_the_keys_and_values_it_has(
    base: BaseModel,
):
    """Against transformers' own cache: filled by one set of weights, read by another."""
    old, new = (random_adapter(base, seed) for seed in (1, 2))
    asked = request([5, 6, 7, 8, 9], 12, seed=3)
    batch = SamplingBatch(base, make_replica(base, old), 8192, NO_LIMIT)
    client = Client(asked)
    batch.add(client.job)
    for _ in range(5):  # six tokens: the prefill draws the first
        batch.step()
    batch.replace(make_replica(base, new))
    finish(batch)
    [completion] = client.completions

    modules = [merged(base, weights) for weights in (old, new)]
    cache, feed = DynamicCache(), torch.tensor([asked.prompt])
    for place, (token, logprob) in enumerate(
        zip(completion.tokens, completion.logprobs, strict=True)
    ):
        with torch.no_grad():
            output = modules[place >= 6](input_ids=feed, past_key_values=cache, use_cache=True)
        expected = output.logits[0, -1].float().log_softmax(-1)[token]
        assert logprob == pytest.approx(float(expected), abs=1e-5)
        feed = torch.tensor([[token]])


def random_adapter(base: BaseModel, seed: int) -> AdapterWeights:
    settings = LoraSettings(rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: (0.2 * torch.randn(2, linear.in_features, generator=generator),
               0.2 * torch.randn(linear.out_features, 2, generator=generator))
        for name, linear in base.module.named_modules()
        if isinstance(linear, nn.Linear) and name != "lm_head"
    }  # fmt: skip
    return AdapterWeights(settings, pairs)


def merged(base: BaseModel, weights: AdapterWeights) -> PreTrainedModel:
    """Plain transformers with W + scaling B A."""
    module = copy.deepcopy(base.module)
    for name, (a, b) in weights.pairs.items():
        weight = module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data += weights.settings.scaling * (b @ a)
    return module


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
