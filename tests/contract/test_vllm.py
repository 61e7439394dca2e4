"""Sampling by vLLM: the right weights after every swap, in memory that stays flat, and through the
death of the engine. Real engines, on the CPU."""

import numpy as np
import psutil
import pytest
import tinker
from tinker import types

from tests.clients import (
    forward,
    prompt_logprobs,
    random_tokens,
    sample,
    train,
    trained_client,
)
from tests.in_process import Served
from tinsmith.backend.vllm_sampler.pool import VllmPool

# Of a log-probability, in float32: what users are promised.
TOLERANCE = 1e-4
TOKENS = random_tokens(0, 30)
PROMPT = types.ModelInput.from_ints(TOKENS)
NUM_SWAPS = 20


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
