"""Two processes that share the training compute what one computes alone."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tinker
import torch

from tests.clients import forward, prompt_logprobs, random_tokens, train, trained_client
from tests.datums import cross_entropy_data, gspo_data, policy_data, top_k_data
from tinsmith.backend.model import adapter
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.trainer import AdamParams, Trainer
from tinsmith.backend.ranks.group import RankGroup
from tinsmith.backend.ranks.launch import check_devices, check_launch, running_ranks
from tinsmith.backend.ranks.shares import split
from tinsmith.errors import TinsmithError
from tinsmith.serving import local_server

TOKENS = random_tokens(5, 24)
SETTINGS = LoraSettings(rank=4, alpha=32.0)
PARAMS = AdamParams(1e-2, 0.9, 0.95, 1e-3, 0.1, 1.0)
CROSS_ENTROPY = LossChoice("cross_entropy")
GSPO = LossChoice("gspo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})
CASES = {
    "cross_entropy": (CROSS_ENTROPY, cross_entropy_data),
    "several targets": (CROSS_ENTROPY, top_k_data),
    "importance_sampling": (LossChoice("importance_sampling"), policy_data),
    "gspo": (GSPO, gspo_data),
}


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process and another one, with the base models as this one has them."""

    group: RankGroup
    bases: dict[str, BaseModel]


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "sharded"])
def ranks(request: pytest.FixtureRequest, model_dirs: dict[str, Path]) -> Iterator[Ranks]:
    """Each rank with the whole of the base models, or with half. Those train by transformers' own
    layers, so one process does as well then: what differs is the sharing alone."""
    models = {name: str(folder) for name, folder in model_dirs.items()}
    with running_ranks(models, "cpu", "float32", 2, 1, shard_base_model=request.param) as group:
        assert group is not None
        bases = load_base_models(models, "cpu", "float32", group.mesh)
        for base in bases.values():
            assert (base.shards is not None) == request.param
            if base.shards is not None:
                base.shards.summon = partial(group.attend_forward, base.name)
        with pytest.MonkeyPatch.context() as patch:
            if request.param:
                patch.setattr(adapter, "use_training_layers", lambda *_: None)
            yield Ranks(group, bases)


def make_trainer(base: BaseModel, ranks: Ranks | None) -> Trainer:
    """The ranks cut their shares smaller than the one alone its whole."""
    if ranks is None:
        return Trainer(base, SETTINGS, seed=1, token_budget=64)
    own = ranks.bases[base.name]
    return Trainer(own, SETTINGS, 1, token_budget=64, ranks=ranks.group, min_micro_batches=5)


def flat(trainer: Trainer) -> np.ndarray:
    tensors = [tensor for pair in trainer.weights().pairs.values() for tensor in pair]
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double().numpy()


@pytest.mark.parametrize("case", CASES)
def test_steps_of_two_ranks_equal_those_of_one(base: BaseModel, ranks: Ranks, case: str):
    choice, data = CASES[case]
    alone, shared = make_trainer(base, None), make_trainer(base, ranks)
    start = flat(alone)
    for step in range(3):
        for part in range(2):  # two forward_backwards of one step
            batch = data(10 * step + part)
            one, two = (t.forward_backward(batch, choice, False) for t in (alone, shared))
            for ours, theirs in zip(two.logprobs, one.logprobs, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
            assert two.metrics.keys() == one.metrics.keys()
            for name in one.metrics:  # the loss sums terms of both signs, some 500 in magnitude
                assert two.metrics[name] == pytest.approx(one.metrics[name], abs=500 * 2e-7)
        norms = [trainer.optim_step(PARAMS)["grad_norm"] for trainer in (alone, shared)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    one, two = flat(alone), flat(shared)
    assert np.linalg.norm(one - start) > 0.1 * np.linalg.norm(one)
    assert np.linalg.norm(two - one) <= 1e-6 * np.linalg.norm(one)
    shared.close()


def test_fewer_data_than_ranks_and_forward_alone_leave_nobody_waiting(
    base: BaseModel, ranks: Ranks
):
    alone, shared = make_trainer(base, None), make_trainer(base, ranks)
    for data in (cross_entropy_data(1, [7]), cross_entropy_data(2)):
        one, two = (t.forward_backward(data, CROSS_ENTROPY, True) for t in (alone, shared))
        for ours, theirs in zip(two.logprobs, one.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert shared.optim_step(PARAMS)["grad_norm"] == 0.0
    shared.close()


def test_an_error_on_a_rank_is_told_and_adds_nothing(bases: dict, ranks: Ranks):
    base = bases["qwen3"]
    alone, shared = make_trainer(base, None), make_trainer(base, ranks)
    good = cross_entropy_data(3, [9, 8, 3])
    assert split([9, 8, 3], 2) == [[0], [1, 2]]
    broken = [good[0], _beyond_the_vocabulary(good[1]), good[2]]
    for trainer in (alone, shared):
        trainer.forward_backward(good, CROSS_ENTROPY, False)
    with pytest.raises(RuntimeError, match=r"on rank 1: IndexError"):
        shared.forward_backward(broken, CROSS_ENTROPY, False)
    with pytest.raises(IndexError):
        shared.forward_backward([broken[1]], CROSS_ENTROPY, False)
    norms = [trainer.optim_step(PARAMS)["grad_norm"] for trainer in (alone, shared)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    shared.close()


def _beyond_the_vocabulary(datum: Datum) -> Datum:
    return Datum(datum.tokens + 10_000, datum.target_tokens, datum.loss_inputs)


def test_every_row_has_one_rank_and_the_tokens_are_spread():
    random = np.random.default_rng(0)
    for num_ranks in (1, 2, 3, 8):
        lengths = random.integers(1, 200, 40).tolist()
        shares = split(lengths, num_ranks)
        assert sorted(row for share in shares for row in share) == list(range(40))
        loads = [sum(lengths[row] for row in share) for share in shares]
        assert max(loads) - min(loads) <= max(lengths)
    assert split([5], 3) == [[0], [], []]


def test_a_server_that_shards_its_model_does_all_that_one_process_does(
    service: tinker.ServiceClient, qwen3_dir: Path, tmp_path: Path
):
    options = [f"--store={tmp_path / 'store'}", "--token-budget=256", "--threads=1"]
    options += ["--num-gpus=2", "--shard-base-model=true"]
    expected = numbers(service)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with local_server({"qwen3": str(qwen3_dir)}, options, log=tmp_path / "log") as endpoint:
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        workers = [p for p in started if "tinsmith.backend.ranks.worker" in p.cmdline()]
        assert len(workers) == 1
        with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
            found = numbers(client)
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)
            trainer = client.create_lora_training_client("qwen3", rank=4).result()
            os.kill(workers[0].pid, signal.SIGKILL)
            with pytest.raises(tinker.RequestFailedError, match=r"rank 1 has ended \(exit code -9"):
                forward(trainer, TOKENS)
            assert "qwen3" in str(client.get_server_capabilities()), "the server still answers"


def numbers(service: tinker.ServiceClient) -> dict[str, list[float]]:
    """Of two adapters that train by turns, one saved and loaded, and of what is sampled."""
    one, two = (trained_client(service, "qwen3", seed=seed, steps=1) for seed in (4, 5))
    train(one, 1, seed=6)
    path = one.save_state("half-way").result().path
    loaded = service.create_training_client_from_state_with_optimizer(path).result()
    for client in (one, two, loaded):
        train(client, 1, seed=7)
    sampler = one.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=6, temperature=0.0)
    prompt = tinker.ModelInput.from_ints(TOKENS)
    (sampled,) = sampler.sample(prompt, 1, params).result().sequences
    assert sampled.logprobs is not None
    return {
        "trained on": forward(one, TOKENS),
        "the other adapter": forward(two, TOKENS),
        "loaded": forward(loaded, TOKENS),
        "prompt": prompt_logprobs(sampler, TOKENS),
        "sampled": sampled.logprobs,
        "tokens": [float(token) for token in sampled.tokens],
    }


def test_workers_end_when_their_server_is_killed(qwen3_dir: Path, tmp_path: Path):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    options = [f"--store={tmp_path / 'store'}", "--threads=1", "--num-gpus=2"]
    with local_server({"qwen3": str(qwen3_dir)}, options, log=tmp_path / "log"):
        started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        worker = next(p for p in started if "tinsmith.backend.ranks.worker" in p.cmdline())
        server = worker.parent()
        assert server is not None
        server.kill()
        deadline = time.monotonic() + 60
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the worker outlives its server"
            time.sleep(0.05)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_devices("cuda", 2) == "cuda"
    with pytest.raises(TinsmithError, match="--num-gpus 4: PyTorch sees 2 CUDA devices"):
        check_devices("auto", 4)
    with pytest.raises(TinsmithError, match="--device must be auto, cuda or cpu, got 'cuda:1'"):
        check_devices("cuda:1", 2)


def test_several_servers_are_not_taken_for_the_ranks_of_one():
    check_launch({"WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})
    with pytest.raises(TinsmithError, match=r"torchrun has started 4 servers .*--num-gpus 4"):
        check_launch({"WORLD_SIZE": "4"})
    with pytest.raises(TinsmithError, match=r"srun has started 2 servers .* srun with one task"):
        check_launch({"SLURM_STEP_NUM_TASKS": "2"})
