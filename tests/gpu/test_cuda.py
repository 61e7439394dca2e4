"""What only a GPU can show; skipped, with the reason, where there is none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, load_base_models
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.trainer import AdamParams, Trainer
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.decode_steps import Recorder, Recording, cuda_recorder
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.backend.sampling.request import Completion, SamplingRequest, SamplingResult

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# Published bar for bfloat16: mean |log p (sampler) - log p (trainer)|; float32 as on the CPU.
MEAN_GAP = {"bfloat16": 0.015, "float32": 1e-4}


@pytest.fixture(params=["bfloat16", "float32"])
def base(request: pytest.FixtureRequest, qwen3_dir: Path) -> BaseModel:
    torch.backends.cuda.matmul.allow_tf32 = False
    return load_base_models({"m": str(qwen3_dir)}, "cuda", request.param)["m"]


def test_auto_means_cuda_and_bfloat16(qwen3_dir: Path) -> None:
    base = load_base_models({"m": str(qwen3_dir)}, "auto", "auto")["m"]
    assert base.device.type == "cuda"
    assert base.dtype == torch.bfloat16


def test_sampler_and_trainer_agree_on_the_gpu(base: BaseModel) -> None:
    trainer = _trained(base)
    result = _sample(base, trainer)
    data, sampled = [], []
    for completion in result.sequences:
        tokens = np.array([*PROMPT, *completion.tokens])
        weights = np.zeros(len(tokens) - 1, np.float32)
        weights[len(PROMPT) - 1 :] = 1
        data.append(Datum(tokens[:-1], tokens[1:], {"weights": weights}))
        sampled.append(np.array(completion.logprobs))
    scored = trainer.forward_backward(data, LossChoice("cross_entropy"), forward_only=True).logprobs
    gaps = [np.abs(s[len(PROMPT) - 1 :] - q) for s, q in zip(scored, sampled, strict=True)]
    assert np.concatenate(gaps).mean() <= MEAN_GAP[str(base.dtype).removeprefix("torch.")]


def test_adapters_are_float32_and_learn_on_the_gpu(base: BaseModel) -> None:
    trainer = _trained(base)
    for a, b in trainer.weights().pairs.values():
        assert a.dtype == b.dtype == torch.float32
        assert a.device.type == "cuda"
        assert b.abs().max() > 0


def test_recorded_steps_give_what_computed_ones_give(
    base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to where last digits, which the rows that fill a step up may change, change a token."""
    trainer = _trained(base)
    replayed = 0

    def counting() -> Recorder:
        record = cuda_recorder(base.device)

        def counted(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            replay = record(compute)

            def replay_counted() -> torch.Tensor:
                nonlocal replayed
                replayed += 1
                return replay()

            return replay_counted

        return counted

    plain, recorded = (_sample_many(base, trainer, r) for r in (None, Recording(counting)))
    assert replayed > 200, "of the 299 steps of the longest ones"
    assert not caplog.records
    num_same, gaps = 0, []
    for one, other in zip(plain, recorded, strict=True):
        pairs = zip(one.tokens, other.tokens, strict=True)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(one.tokens))
        num_same += same
        gaps.append(np.abs(np.subtract(one.logprobs[:same], other.logprobs[:same])))
    share = num_same / sum(len(one.tokens) for one in plain)
    assert share >= (0.95 if base.dtype == torch.float32 else 0.05)
    assert np.concatenate(gaps).mean() <= MEAN_GAP[str(base.dtype).removeprefix("torch.")]


def test_a_recording_that_fails_leaves_the_gpu_as_it_was() -> None:
    x = torch.ones(3, device="cuda")
    stream = torch.cuda.current_stream()
    record = cuda_recorder(x.device)
    with pytest.raises(RuntimeError):
        record(lambda: x * x.sum().item())
    assert torch.cuda.current_stream() == stream
    replay = cuda_recorder(x.device)(lambda: x + 1)
    x.fill_(2)
    assert replay().tolist() == [3, 3, 3]


def test_one_base_is_shared_by_all_adapters(base: BaseModel) -> None:
    first = attach_adapter(base, LoraSettings(4, 32.0), seed=0)
    adapters = {id(p) for _, a, b in lora_pairs(first) for p in (a, b)}
    shared = {p.data_ptr() for p in base.module.parameters()}
    assert all(p.data_ptr() in shared for p in first.parameters() if id(p) not in adapters)


PROMPT = (5, 6, 7, 8)


def _trained(base: BaseModel) -> Trainer:
    """A trainer after three steps on fixed data, so that B is not zero."""
    trainer = Trainer(base, LoraSettings(8, 32.0), seed=1, token_budget=256)
    rng = np.random.default_rng(0)
    for _ in range(3):
        tokens = rng.integers(0, 300, size=(6, 20))
        data = [Datum(t[:-1], t[1:], {"weights": np.ones(19, np.float32)}) for t in tokens]
        trainer.forward_backward(data, LossChoice("cross_entropy"), forward_only=False)
        trainer.optim_step(AdamParams(1e-3, 0.9, 0.95, 1e-8, 0.0, 0.0))
    return trainer


def _sample(base: BaseModel, trainer: Trainer) -> SamplingResult:
    results: list[SamplingResult] = []
    batch = SamplingBatch(base, make_replica(base, trainer.weights()), 256, 10**6)
    request = SamplingRequest(PROMPT, 16, 32, 1.0, -1, 1.0, 3, frozenset())
    batch.add(Job(request, results.append, lambda error: pytest.fail(str(error))))
    while not batch.is_idle:
        batch.step()
    return results[0]


def _sample_many(
    base: BaseModel, trainer: Trainer, recording: Recording | None
) -> list[Completion]:
    """Rows of several lengths, of which some join when others are under way."""
    replica = make_replica(base, trainer.weights())
    batch = SamplingBatch(base, replica, 256, 10**6, recording=recording)
    results: list[SamplingResult] = []
    for num_samples, max_tokens, prompt in [(11, 100, PROMPT), (1, 60, (9,)), (5, 300, PROMPT * 9)]:
        request = SamplingRequest(
            prompt, num_samples, max_tokens, 1.0, -1, 1.0, max_tokens, frozenset()
        )
        batch.add(Job(request, results.append, lambda error: pytest.fail(str(error))))
        for _ in range(20):
            batch.step()
    while not batch.is_idle:
        batch.step()
    return [completion for result in results for completion in result.sequences]
