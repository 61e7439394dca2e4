"""Decode steps that are recorded give what computed ones give.

A CUDA graph repeats operations on addresses. Here PyTorch's tracer records them, on the very
tensors: what a recording reads of Python, or of memory that is no longer the cache's, is as wrong.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from tests.batches import REQUESTS, Client, alone, assert_same, finish, make_batch, request
from tests.families import llama, mistral, qwen2, qwen2_moe, qwen3
from tests.unit.test_fused_layer import sampled_as_in_float64
from tinsmith.backend.model.base_model import BaseModel, decoder_layers
from tinsmith.backend.sampling import keys_values, pool, replica
from tinsmith.backend.sampling.decode_steps import (
    Recorder,
    Recording,
    filled_up,
    is_fixed,
    recording_of,
)
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.backend.sampling.request import Completion
from tinsmith.backend.sampling.snapshots import Snapshots


class Tracers:
    """Makes recorders that trace, and counts."""

    def __init__(self) -> None:
        self.num_made = self.num_replayed = 0
        self.recorded: list[int] = []  # rows of each

    def __call__(self) -> Recorder:
        self.num_made += 1
        return self._record

    def _record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        traced = make_fx(compute)()
        self.recorded.append(len(compute()))

        def replay() -> Tensor:
            self.num_replayed += 1
            return traced()

        return replay


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters beside the weights, and PyTorch's attention; in caches that are soon outgrown."""
    monkeypatch.setattr(keys_values, "FIXED_BLOCK", 64)
    monkeypatch.setattr(replica, "should_merge", lambda *_: False)
    monkeypatch.setattr(keys_values, "openmp", lambda: None)


LONG = [*REQUESTS, request([4, 5], 140, seed=6)]


def sample(base: BaseModel, recording: Recording | None) -> list[list[Completion]]:
    """All of LONG in one batch, of which some come while others are under way."""
    batch, _ = make_batch(base, recording=recording)
    clients = [Client(asked) for asked in LONG]
    for client in clients[:3]:
        batch.add(client.job)
    for _ in range(5):
        batch.step()
    for client in clients[3:]:
        batch.add(client.job)
    finish(batch)
    return [client.completions for client in clients]


def test_recorded_steps_give_what_each_request_gets_alone(base: BaseModel):
    """Rows come and go, fill a recording up, and outgrow the cache that it was made with."""
    tracers = Tracers()
    for found, own in zip(sample(base, Recording(tracers)), alone(base, LONG), strict=True):
        assert_same(found, own)
    assert tracers.num_made > 1, "the cache moved"
    assert {1, 4, 8} <= set(tracers.recorded), "numbers of rows"
    assert tracers.num_replayed > 120, "of the 139 steps of the longest one"


@pytest.mark.parametrize("make", [llama, mistral, qwen2])
def test_recorded_steps_give_the_log_probabilities_of_plain_transformers_in_float64(
    make: Callable[[], PreTrainedModel],
):
    """Of families with biases, windows in all layers and in some."""
    tracers = Tracers()
    sampled_as_in_float64(make, Recording(tracers))
    assert tracers.num_replayed > 10


def test_what_would_take_too_much_is_computed_step_by_step(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    """Three rows of 64 places each, filled up to four, of which 3 x 2 to 3 x 20 have keys."""
    asked = request([5, 6], 20, num_samples=3)
    [expected] = alone(base, [asked])
    for max_tokens, vain_keys, recorded in [(256, 250, [4]), (255, 999, []), (999, 190, [])]:
        monkeypatch.setattr(keys_values, "VAIN_KEYS", vain_keys)
        tracers, client = Tracers(), Client(asked)
        batch, _ = make_batch(base, max_tokens_kept=max_tokens, recording=Recording(tracers))
        batch.add(client.job)
        for _ in range(4):
            batch.step()
        assert tracers.recorded == recorded
        finish(batch)
        assert_same(client.completions, expected)


def test_weights_that_change_are_those_of_the_next_step(base: BaseModel):
    """A recording holds the weights that it was made with."""
    tracers = Tracers()
    new = make_replica(base, None)
    layers = decoder_layers(new)
    assert layers is not None
    changed: Any = layers[0]
    changed = changed.self_attn.o_proj
    changed.weight = torch.nn.Parameter(2 * changed.weight, requires_grad=False)
    found = []
    for recording in (None, Recording(tracers)):
        client = Client(request([5, 6, 7], 12, seed=4))
        batch, _ = make_batch(base, recording=recording)
        batch.add(client.job)
        for _ in range(6):
            batch.step()
        batch.replace(new)
        finish(batch)
        found.append(client.completions)
    assert_same(*found)
    assert tracers.recorded == [1, 1]


def test_a_cancelled_row_leaves_a_recorded_batch(base: BaseModel):
    """Another row takes its slot, and is given what the recording looks at there."""
    tracers = Tracers()
    expected = alone(base)
    batch, _ = make_batch(base, recording=Recording(tracers))
    clients = [Client(asked) for asked in REQUESTS]
    for client in clients:
        batch.add(client.job)
    for _ in range(6):
        batch.step()
    batch.cancel(clients[0].job)
    finish(batch)
    for client, own in list(zip(clients, expected, strict=True))[1:]:
        assert_same(client.completions, own)
    assert tracers.num_replayed > 50


def test_a_gpu_that_cannot_record_computes_and_says_so_once(
    base: BaseModel, caplog: pytest.LogCaptureFixture
):
    def refuse(_: Callable[[], Tensor]) -> Callable[[], Tensor]:
        error = RuntimeError("the end of the recording failed")
        error.__context__ = RuntimeError("operation not permitted when stream is capturing")
        raise error

    recording = Recording(lambda: refuse)
    for _ in range(2):  # of the same model, as of its snapshots
        for found, own in zip(sample(base, recording), alone(base, LONG), strict=True):
            assert_same(found, own)
    [message] = [record.message for record in caplog.records]
    assert "decode steps are slower, not recorded" in message
    assert "not permitted when stream is capturing" in message


@pytest.mark.parametrize("records", [True, False])
def test_the_setting_decides(
    bases: dict[str, BaseModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: bool,
):
    tracers, recordings = Tracers(), list[Recording]()

    def recording_of(_: BaseModel) -> Recording:
        recordings.append(Recording(tracers))
        return recordings[-1]

    monkeypatch.setattr(pool, "recording_of", recording_of)
    sampler = pool.SamplerPool(Snapshots(tmp_path / "s"), 1024, records_steps=records)
    for snapshot in ("one", "two"):
        sampler.snapshots.adopt(snapshot, bases["qwen3"], None)
        client = Client(request([5, 6], 9))
        sampler.add(snapshot, client.job)
        while not sampler.is_idle:
            sampler.step()
        assert len(client.completions[0].tokens) == 9
    assert tracers.recorded == ([1, 1] if records else [])
    assert len(recordings) == records, "what failed for one snapshot need not be tried for another"


def test_what_is_recorded_does_not_depend_on_numbers():
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert is_fixed(llama())
    assert not is_fixed(qwen3(rope_parameters=dynamic))
    assert not is_fixed(qwen2_moe())


def test_a_cpu_records_nothing(base: BaseModel):
    assert recording_of(base) is None


def test_numbers_of_rows_are_few_and_near():
    filled = [filled_up(number) for number in range(1, 200)]
    assert filled[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert all(0 <= more - number < 16 for number, more in enumerate(filled, 1))
    assert len(set(filled)) == 4 + 13
