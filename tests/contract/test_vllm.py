"""Sampling by vLLM: the right weights after every swap, in memory that stays flat, and through the
death of the engine. Real engines, on the CPU."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tinker
import torch
from tinker import types

from tests.clients import (
    Params,
    forward,
    prompt_logprobs,
    random_tokens,
    sample,
    train,
    trained_client,
)
from tests.conftest import require_vllm
from tests.contract.test_settings import assert_drawn_with_min_p
from tests.in_process import Served, serving
from tinsmith.backend.model.adapter import (
    AdapterWeights,
    LoraSettings,
    adapter_weights,
    attach_adapter,
    lora_pairs,
)
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.request import SamplingRequest, SamplingResult
from tinsmith.backend.sampling.snapshots import Snapshots
from tinsmith.backend.vllm_sampler.holder import Holder
from tinsmith.backend.vllm_sampler.launch import launch_of
from tinsmith.backend.vllm_sampler.line import Line
from tinsmith.backend.vllm_sampler.pool import VllmPool
from tinsmith.backend.vllm_sampler.probe import expected_logprobs
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

# Of a log-probability, in float32: what users are promised.
TOLERANCE = 1e-4
TOKENS = random_tokens(0, 30)
PROMPT = types.ModelInput.from_ints(TOKENS)
NUM_SWAPS = 20
REQUEST = SamplingRequest(tuple(TOKENS), 1, 10, 1.0, -1, 1.0, 0, frozenset())


def engine_pid(served: Served) -> int:
    assert isinstance(served.core.pool, VllmPool)
    pid = served.core.pool.lines["qwen3"].holder.pid
    assert pid is not None
    return pid


def test_twenty_swaps_each_sample_from_the_right_weights_in_flat_memory(
    vllm_served: Served, vllm_service: tinker.ServiceClient
):
    trainer = trained_client(vllm_service, "qwen3")
    held, resident_bytes = [], []
    for swap in range(NUM_SWAPS):
        train(trainer, 1, seed=swap, rate=3e-2)
        sampler = trainer.save_weights_and_get_sampling_client().result()
        truth = forward(trainer, TOKENS)
        assert prompt_logprobs(sampler, TOKENS) == pytest.approx(truth, abs=TOLERANCE)
        [sequence] = sample(sampler, TOKENS, max_tokens=8, seed=swap, stop=[])
        whole = [*TOKENS, *sequence.tokens]
        assert sequence.logprobs == pytest.approx(
            forward(trainer, whole)[len(TOKENS) - 1 :], abs=TOLERANCE
        )
        held.append((sampler, truth))
        resident_bytes.append(psutil.Process(engine_pid(vllm_served)).memory_info().rss)
    policies = np.array([truth for _, truth in held])
    steps = np.abs(np.diff(policies, axis=0)).max(axis=1)
    assert steps.min() > 100 * TOLERANCE, "stale weights would show"
    assert resident_bytes[-1] - resident_bytes[4] < 32 << 20
    for sampler, truth in held[::4]:  # older ones are there as long as their clients are
        assert prompt_logprobs(sampler, TOKENS) == pytest.approx(truth, abs=TOLERANCE)


def test_an_engine_killed_in_the_middle_of_a_step_is_replaced_and_the_step_completes(
    vllm_served: Served, vllm_service: tinker.ServiceClient
):
    trainer = trained_client(vllm_service, "qwen3", seed=7)
    sampler = trainer.save_weights_and_get_sampling_client().result()
    params = Params(max_tokens=400, seed=5, stop=[])
    undisturbed = sampler.sample(PROMPT, 16, params).result()
    before = engine_pid(vllm_served)
    pending = sampler.sample(PROMPT, 16, params)
    while not vllm_served.core.pool.num_running:
        time.sleep(0.001)
    os.kill(before, signal.SIGKILL)
    repeated = pending.result()
    assert engine_pid(vllm_served) != before
    for one, two in zip(undisturbed.sequences, repeated.sequences, strict=True):
        assert list(one.tokens) == list(two.tokens)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    truth = forward(trainer, [*TOKENS, *repeated.sequences[0].tokens])
    assert repeated.sequences[0].logprobs == pytest.approx(truth[len(TOKENS) - 1 :], abs=TOLERANCE)


def test_an_engine_that_is_told_to_end_goes_on_as_long_as_its_server(
    vllm_served: Served, vllm_service: tinker.ServiceClient
):
    """SLURM sends SIGTERM to every process of a job, whose stage then ends its step and saves."""
    sampler = vllm_service.create_sampling_client(base_model="qwen3").result()
    before = engine_pid(vllm_served)
    pending = sampler.sample(PROMPT, 4, Params(max_tokens=200, seed=5, stop=[]))
    while not vllm_served.core.pool.num_running:
        time.sleep(0.001)
    for process in (psutil.Process(before), *psutil.Process(before).children(recursive=True)):
        process.terminate()
    assert [len(sequence.tokens) for sequence in pending.result().sequences] == [200] * 4
    assert len(sample(sampler, TOKENS, max_tokens=1, stop=[])) == 1
    assert engine_pid(vllm_served) == before


def test_what_vllm_cannot_answer_is_answered_all_the_same(vllm_service: tinker.ServiceClient):
    """By the trainer's own model: a tiny temperature, greedy log-probabilities of a cut
    distribution, and draws in place of prompt tokens."""
    sampler = vllm_service.create_sampling_client(base_model="qwen3").result()
    asked: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1e-4},
        {"temperature": 0, "top_k": 1},
    ]
    greedy, cold, cut = (
        sample(sampler, TOKENS, 1, max_tokens=5, seed=1, stop=[], **extra)[0] for extra in asked
    )
    assert list(greedy.tokens) == list(cold.tokens) == list(cut.tokens)
    assert cut.logprobs == pytest.approx([0.0] * 5, abs=1e-6)
    assert cold.logprobs == pytest.approx([0.0] * 5, abs=1e-3)
    found = sampler.sample(PROMPT, 1, Params(max_tokens=1, seed=0), prompt_alt_tokens_k=3).result()
    assert found.prompt_alt_tokens is not None


def test_adapters_are_hot_swapped_beside_the_base_model_as_on_a_gpu(
    vllm_model_dir: Path, tmp_path: Path
):
    """The way of engines that hold many adapters at once, here on the CPU: newer weights in place,
    more snapshots than there is room for, the unembedding, a rank that needs a larger engine."""
    require_vllm()
    torch.set_num_threads(1)
    base = load_base_models({"qwen3": str(vllm_model_dir)}, "cpu", "float32")["qwen3"]
    settings = ServerSettings(
        models={}, api_key="tml-x", vllm_enforce_eager=True, vllm_max_loras=2, threads=1
    )
    launch = launch_of(base, settings)
    launch = replace(launch, engine={**launch.engine, "merges": False, "max_lora_rank": 8})
    snapshots, changed = Snapshots(tmp_path / "s"), threading.Event()
    line = Line(Holder(base, launch, snapshots, tmp_path / "scratch", changed.set))
    try:
        line.start()
        first_pid = line.holder.pid
        for name, seed in (("a", 1), ("b", 2), ("c", 3), ("a", 1), ("b", 4)):
            weights = random_adapter(base, rank=4, seed=seed)
            snapshots.add(name, base, weights)
            line.replace(name)
            assert_sampled_as_trained(line, base, name, weights, changed)
            held = [name for name in ("a", "b", "c") if name in line.holder.residents]
            assert len(held) <= 2
        assert_replaced_while_completions_run(line, base, snapshots, changed)
        assert line.holder.pid == first_pid, "no engine was started again for a swap"
        line.forget("a", TinsmithError("unheld"))
        assert "a" not in line.holder.residents
        wide = random_adapter(base, rank=12, seed=5)
        snapshots.add("wide", base, wide)
        assert_sampled_as_trained(line, base, "wide", wide, changed)
        assert line.holder.pid != first_pid
        assert not list((tmp_path / "scratch").iterdir())
    finally:
        line.stop()


def random_adapter(base: BaseModel, rank: int, seed: int) -> AdapterWeights:
    """On all linear layers, the unembedding too, far enough from the base model to show."""
    settings = LoraSettings(rank, 32.0)
    module = attach_adapter(base, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    for _, _, b in lora_pairs(module):
        b.data = 0.02 * torch.randn(b.shape, generator=generator)
    return adapter_weights(module, settings)


def assert_sampled_as_trained(
    line: Line, base: BaseModel, name: str, weights: AdapterWeights, changed: threading.Event
) -> None:
    answers = ask(line, name, REQUEST)
    step_until(line, changed, answers)
    [completion] = answers[0].sequences
    own = trainers_logprobs(base, weights, completion.tokens)
    np.testing.assert_allclose(completion.logprobs, own, rtol=0, atol=TOLERANCE)
    plain = trainers_logprobs(base, None, completion.tokens)
    assert np.abs(own - plain).max() > 100 * TOLERANCE


def trainers_logprobs(
    base: BaseModel, weights: AdapterWeights | None, tokens: Sequence[int]
) -> np.ndarray:
    """Log-probabilities of a completion's tokens by the trainer's model."""
    logprobs_TV = expected_logprobs(base, weights, [*TOKENS, *tokens])
    return logprobs_TV[np.arange(len(tokens)) + len(TOKENS) - 1, tokens]


def assert_replaced_while_completions_run(
    line: Line, base: BaseModel, snapshots: Snapshots, changed: threading.Event
) -> None:
    """New weights for `b` in the midst of completions on `b` and on `c`, which keeps its own."""
    before, beside = random_adapter(base, rank=4, seed=4), random_adapter(base, rank=4, seed=3)
    first, long = 20, replace(REQUEST, max_tokens=150)
    kept, replaced = ask(line, "c", long), ask(line, "b", long)
    step_until(line, changed, ask(line, "b", replace(long, max_tokens=first)))
    assert line.num_running == 2
    snapshots.add("b", base, random_adapter(base, rank=4, seed=6))
    line.replace("b")
    step_until(line, changed, kept, replaced)
    for results, weights, is_kept in ((kept, beside, True), (replaced, before, False)):
        [completion] = results[0].sequences
        gaps = np.abs(completion.logprobs - trainers_logprobs(base, weights, completion.tokens))
        assert len(gaps) == 150
        assert gaps[:first].max() <= TOLERANCE
        assert (gaps.max() <= TOLERANCE) == is_kept
        assert is_kept or gaps[-first:].max() > 100 * TOLERANCE


def ask(line: Line, name: str, request: SamplingRequest) -> list[SamplingResult]:
    """A list that will hold the answer."""
    results: list[SamplingResult] = []
    line.add(name, Job(request, results.append, lambda error: pytest.fail(str(error))))
    return results


def step_until(line: Line, changed: threading.Event, *answers: list[SamplingResult]) -> None:
    while not all(answers):
        assert changed.wait(timeout=300)
        changed.clear()
        line.step()


@pytest.fixture(scope="module")
def strict(vllm_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose engine has settings that few have."""
    require_vllm()
    store = tmp_path_factory.mktemp("strict") / "store"
    settings: dict[str, Any] = {"min_p": 0.4, "vllm_max_model_len": 100, "vllm_restart_every": 2}
    settings |= {"sampler": "vllm", "vllm_enforce_eager": True, "threads": 1}
    with serving(vllm_model_dir, store, **settings) as served:
        yield served


def test_a_servers_min_p_and_longest_sequence_bind_vllm_too(strict: Served, vllm_model_dir: Path):
    with strict.client() as service:
        sampler = service.create_sampling_client(base_model="qwen3").result()
        found = sample(sampler, TOKENS, 256, max_tokens=1, temperature=0.8, stop=[])
        base = strict.core.bases["qwen3"]
        assert_drawn_with_min_p(found, base, TOKENS, temperature=0.8, min_p=0.4)
        assert len(sample(sampler, TOKENS, max_tokens=70, stop=[])[0].tokens) == 70
        with pytest.raises(
            tinker.RequestFailedError, match=r"vllm_max_model_len of 100 .* 30 \+ 71"
        ):
            sample(sampler, TOKENS, max_tokens=71, stop=[])


def test_an_engine_is_replaced_when_it_took_as_many_weights_as_the_setting_says(strict: Served):
    with strict.client() as service:
        trainer = trained_client(service, "qwen3")
        pids, held = [], []
        for swap in range(3):
            train(trainer, 1, seed=swap, rate=3e-2)
            held.append(trainer.save_weights_and_get_sampling_client().result())
            truth = forward(trainer, TOKENS)
            pending = held[0].sample(PROMPT, 2, Params(max_tokens=60, stop=[]))
            assert prompt_logprobs(held[-1], TOKENS) == pytest.approx(truth, abs=TOLERANCE)
            assert len(pending.result().sequences) == 2, "the old engine ended what it was at"
            pids.append(engine_pid(strict))
        assert pids[0] == pids[1] != pids[2]


def test_a_model_that_vllm_does_not_compute_stops_the_server_with_vllms_words(qwen3_dir: Path):
    require_vllm()
    base = load_base_models({"small-heads": str(qwen3_dir)}, "cpu", "float32")["small-heads"]
    settings = ServerSettings(models={}, api_key="tml-x", vllm_enforce_eager=True, threads=1)
    snapshots = Snapshots(qwen3_dir.parent / "none")
    line = Line(Holder(base, launch_of(base, settings), snapshots, qwen3_dir, lambda: None))
    with pytest.raises(TinsmithError, match=r"head_dim=16.*--sampler transformers"):
        line.start()
    line.stop()
