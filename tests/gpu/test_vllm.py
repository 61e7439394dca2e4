"""vLLM on a GPU: adapters beside the base model, and an engine that sleeps while the trainer steps.
Skipped, with the reason, where there is no GPU or no vLLM for it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tests.clients import forward, prompt_logprobs, random_tokens, sample, train, trained_client
from tests.in_process import Served, serving
from tests.models import make_model
from tinsmith.backend.vllm_sampler.launch import ROOT
from tinsmith.backend.vllm_sampler.pool import VllmPool

PYTHON = ROOT / ".venvs" / "vllm-cuda" / "bin" / "python"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no {PYTHON}; `make vllm-cuda` makes it"),
]
TOKENS = random_tokens(0, 30)
MEAN_GAP = {"bfloat16": 0.015, "float32": 1e-4}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, str]]:
    """A server; where there is one GPU it shares it with its engine, which sleeps by turns."""
    folder = tmp_path_factory.mktemp("vllm")
    model = make_model(folder / "qwen3", "qwen3", head_dim=64)
    settings: dict[str, Any] = {"sampler": "vllm", "vllm_gpu_memory_utilization": 0.6}
    settings |= {"device": "cuda", "dtype": request.param}
    with serving(model, folder / "store", **settings) as served:
        yield served, request.param


def test_swaps_between_training_steps_sample_from_the_right_weights(served: tuple[Served, str]):
    server, dtype = served
    assert isinstance(server.core.pool, VllmPool)
    holder = server.core.pool.lines["qwen3"].holder
    with server.client() as client:
        trainer = trained_client(client, "qwen3")
        first_pid = holder.pid
        held: list[tuple[tinker.SamplingClient, list[float]]] = []
        for step in range(5):
            train(trainer, 1, seed=step, rate=3e-2)
            held.append(
                (trainer.save_weights_and_get_sampling_client().result(), forward(trainer, TOKENS))
            )
            for sampler, truth in held:
                gaps = np.abs(np.subtract(prompt_logprobs(sampler, TOKENS), truth))
                assert gaps.mean() <= MEAN_GAP[dtype], "the trainer's own model scores prompts"
                # Wakes the engine that the training put to sleep.
                [sequence] = sample(sampler, TOKENS, max_tokens=30, seed=step, stop=[])
                whole = prompt_logprobs(sampler, [*TOKENS, *sequence.tokens])
                assert sequence.logprobs is not None
                gaps = np.abs(np.subtract(sequence.logprobs, whole[len(TOKENS) - 1 :]))
                assert gaps.mean() <= MEAN_GAP[dtype]
        assert holder.pid == first_pid


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="the engine has a GPU of its own")
def test_the_engines_memory_is_given_up_while_the_trainer_computes(served: tuple[Served, str]):
    server, _ = served
    with server.client() as client:
        trainer = trained_client(client, "qwen3")
        sampler = trainer.save_weights_and_get_sampling_client().result()
        sample(sampler, TOKENS, max_tokens=1, stop=[])
        awake_bytes, _ = torch.cuda.mem_get_info(0)
        forward(trainer, TOKENS)
        asleep_bytes, total_bytes = torch.cuda.mem_get_info(0)
        assert asleep_bytes - awake_bytes > 0.3 * total_bytes
