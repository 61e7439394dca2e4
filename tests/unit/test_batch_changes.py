"""What happens to a batch under way: requests leave it, weights change, a step fails."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tests.batches import (
    NO_LIMIT,
    REQUESTS,
    Client,
    alone,
    assert_same,
    finish,
    make_batch,
    request,
)
from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.replica import make_replica


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
