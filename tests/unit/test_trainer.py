"""Gradients accumulate, optimizer steps are AdamW's, and a run goes on from its files."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.datums import cross_entropy_data, policy_data
from tests.reference import Reference, trainable
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.trainer import AdamParams, Trainer
from tinsmith.errors import TinsmithError
from tinsmith.objectives.losses import LOSSES, Inputs, Loss, Settings

SETTINGS = LoraSettings(rank=4, alpha=32.0)
CROSS_ENTROPY = LossChoice("cross_entropy")
IMPORTANCE_SAMPLING = LossChoice("importance_sampling")
PARAMS = AdamParams(
    learning_rate=3e-3, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3, grad_clip_norm=2.5
)
PLAIN = AdamParams(1e-3, 0.9, 0.95, 1e-8, 0.0, 0.0)


def make_trainer(base: BaseModel, seed: int = 0) -> Trainer:
    return Trainer(base, SETTINGS, seed, token_budget=64)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{side}": tensor
        for name, (a, b) in trainer.weights().pairs.items()
        for side, tensor in (("A", a), ("B", b))
    }


def are_equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def train(trainer: Trainer, seed: int, params: AdamParams = PLAIN) -> dict[str, float]:
    trainer.forward_backward(cross_entropy_data(seed), CROSS_ENTROPY, forward_only=False)
    return trainer.optim_step(params)


def test_three_steps_agree_with_torch_adamw_on_float64_gradients(base: BaseModel):
    trainer = make_trainer(base)
    reference = Reference.load(Path(base.source))
    pairs = trainable(trainer.weights().pairs)
    start = {name: tensor.double() for name, tensor in weights(trainer).items()}
    leaves = [leaf for pair in pairs.values() for leaf in pair]
    optimizer = torch.optim.AdamW(
        leaves, lr=PARAMS.learning_rate, betas=(PARAMS.beta1, PARAMS.beta2), eps=PARAMS.eps,
        weight_decay=PARAMS.weight_decay,
    )  # fmt: skip
    norms = []
    for step in range(3):
        batches = [cross_entropy_data(10 * step + i, [6, 11]) for i in range(2)]
        for batch in batches:  # two forward_backwards of one step
            trainer.forward_backward(batch, CROSS_ENTROPY, forward_only=False)
            _reference_loss(reference, pairs, batch).backward()
        metrics = trainer.optim_step(PARAMS)
        norm = torch.sqrt(sum((leaf.grad**2).sum() for leaf in leaves))  # pyright: ignore
        norms.append(float(norm))
        assert metrics["grad_norm"] == pytest.approx(norms[-1], rel=1e-5)
        for leaf in leaves:
            assert leaf.grad is not None
            leaf.grad *= min(1.0, PARAMS.grad_clip_norm / norms[-1])
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > PARAMS.grad_clip_norm, "the clip must have done something"
    expected = {
        f"{name}.{side}": leaf.detach()
        for name, pair in pairs.items()
        for side, leaf in zip("AB", pair, strict=True)
    }
    for name, tensor in weights(trainer).items():
        moved = (expected[name] - start[name]).norm()
        assert moved > 0
        error = (tensor.double() - expected[name]).norm() / moved
        assert error < 1e-4, f"{name}: {error:.2e} of its movement"
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def _reference_loss(reference: Reference, pairs: Mapping, batch: list[Datum]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for datum in batch:
        logprobs_T = reference.logprobs(
            datum.tokens.tolist(), datum.target_tokens.tolist(), pairs, SETTINGS.scaling
        )
        total = total - (torch.from_numpy(datum.loss_inputs["weights"]) * logprobs_T).sum()
    return total


@pytest.mark.parametrize("field", ["learning_rate", "beta1", "beta2", "eps", "weight_decay"])
def test_every_field_of_adam_params_is_honoured(base: BaseModel, field: str):
    values = {name: getattr(PARAMS, name) for name in PARAMS.__slots__} | {"grad_clip_norm": 0.0}
    one, two = make_trainer(base), make_trainer(base)
    for seed in range(3):
        train(one, seed, AdamParams(**values))
        train(two, seed, AdamParams(**values | {field: values[field] * 0.5}))
    ours, theirs = weights(one), weights(two)
    assert all(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_several_forward_backwards_accumulate_until_the_step(base: BaseModel):
    data = cross_entropy_data(seed=0)
    at_once, in_parts = make_trainer(base), make_trainer(base)
    params = AdamParams(1e-2, 0.9, 0.95, 1e-2, 0.0, 0.0)
    at_once.forward_backward(data, CROSS_ENTROPY, forward_only=False)
    for part in (data[:2], data[2:3], data[3:]):
        in_parts.forward_backward(part, CROSS_ENTROPY, forward_only=False)
    one, two = at_once.optim_step(params), in_parts.optim_step(params)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-6)
    theirs = weights(in_parts)
    for name, tensor in weights(at_once).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=5e-6)


def test_a_step_uses_up_the_gradient(base: BaseModel):
    trainer = make_trainer(base)
    train(trainer, seed=0)
    assert trainer.optim_step(PLAIN)["grad_norm"] == 0


def test_a_step_without_gradient_goes_on_with_momentum_and_decay(base: BaseModel):
    trainer = make_trainer(base)
    train(trainer, seed=0)
    before = weights(trainer)
    trainer.optim_step(PLAIN)
    after = weights(trainer)
    assert all(not torch.equal(before[name], after[name]) for name in before if name[-1] == "B")


def test_forward_leaves_the_gradient_alone(base: BaseModel):
    one, two = make_trainer(base), make_trainer(base)
    for trainer in (one, two):
        trainer.forward_backward(cross_entropy_data(0), CROSS_ENTROPY, forward_only=False)
    two.forward_backward(policy_data(1), IMPORTANCE_SAMPLING, forward_only=True)
    one.optim_step(PLAIN)
    two.optim_step(PLAIN)
    assert are_equal(weights(one), weights(two))


@pytest.fixture
def broken_loss(monkeypatch: pytest.MonkeyPatch) -> Iterator[LossChoice]:
    """A loss that fails at its second micro-batch, when the first has left a gradient."""
    calls = []

    def compute(logprobs_N: Tensor, inputs: Inputs, _: Settings) -> Tensor:
        calls.append(len(logprobs_N))
        if len(calls) > 1:
            raise RuntimeError("broken")
        return -(logprobs_N * inputs["weights"]).sum()

    monkeypatch.setitem(LOSSES, "broken", Loss(compute, ("weights",), "weights"))
    yield LossChoice("broken")
    assert len(calls) == 2


def test_a_failed_forward_backward_leaves_the_gradient_as_it_was(
    base: BaseModel, broken_loss: LossChoice
):
    one, two = make_trainer(base), make_trainer(base)
    for trainer in (one, two):
        trainer.forward_backward(cross_entropy_data(0), CROSS_ENTROPY, forward_only=False)
    with pytest.raises(RuntimeError, match="broken"):
        two.forward_backward(cross_entropy_data(1), broken_loss, forward_only=False)
    one.optim_step(PLAIN)
    two.optim_step(PLAIN)
    assert are_equal(weights(one), weights(two))


def test_a_gradient_that_is_not_finite_is_refused_and_dropped(base: BaseModel):
    trainer = make_trainer(base)
    before = weights(trainer)
    [datum] = policy_data(0, lengths=[4])
    inputs = dict(datum.loss_inputs) | {"logprobs": datum.loss_inputs["logprobs"] * 100}
    wild = Datum(datum.tokens, datum.target_tokens, inputs)
    trainer.forward_backward([wild], IMPORTANCE_SAMPLING, forward_only=False)
    with pytest.raises(TinsmithError, match="the step was not taken"):
        trainer.optim_step(PLAIN)
    assert are_equal(weights(trainer), before)
    assert trainer.optim_step(PLAIN)["grad_norm"] == 0


def test_runs_on_one_base_do_not_disturb_each_other(base: BaseModel):
    alone = make_trainer(base)
    for seed in range(3):
        train(alone, seed)
    beside = make_trainer(base)
    other = Trainer(base, LoraSettings(7, 32.0, train_mlp=False), seed=9, token_budget=64)
    for seed in range(3):
        train(other, 100 + seed)
        beside.forward_backward(cross_entropy_data(seed), CROSS_ENTROPY, forward_only=False)
        train(other, 200 + seed)
        beside.optim_step(PLAIN)
    assert are_equal(weights(alone), weights(beside))


def test_a_run_goes_on_bit_by_bit_from_its_state_with_optimizer(base: BaseModel, tmp_path: Path):
    through = make_trainer(base)
    for seed in range(2):
        train(through, seed)
    through.save(tmp_path, base.name)
    resumed = make_trainer(base, seed=77)
    resumed.load(tmp_path, with_optimizer=True)
    for seed in range(2, 5):
        train(through, seed)
        train(resumed, seed)
    assert are_equal(weights(through), weights(resumed))


def test_a_state_without_optimizer_starts_with_fresh_moments(base: BaseModel, tmp_path: Path):
    through = make_trainer(base)
    train(through, seed=0)
    through.save(tmp_path, base.name)
    fresh = make_trainer(base, seed=77)
    fresh.load(tmp_path, with_optimizer=False)
    assert are_equal(weights(through), weights(fresh))
    before = weights(fresh)
    train(fresh, seed=1)
    train(through, seed=1)
    after, other = weights(fresh), weights(through)
    assert all(not torch.equal(after[name], other[name]) for name in after)
    # The first step of Adam moves every weight by the learning rate, whatever its gradient is.
    for name in after:
        step = (after[name] - before[name]).abs()
        assert float(step.median()) == pytest.approx(PLAIN.learning_rate, rel=1e-2)


def test_the_state_of_a_run_before_its_first_step_can_be_loaded(base: BaseModel, tmp_path: Path):
    one, two = make_trainer(base), make_trainer(base, seed=1)
    one.save(tmp_path, base.name)
    two.load(tmp_path, with_optimizer=True)
    train(one, 0)
    train(two, 0)
    assert are_equal(weights(one), weights(two))


def test_metrics_sum_the_loss_and_estimate_the_divergence_of_the_sampler(base: BaseModel):
    trainer = make_trainer(base)
    data = policy_data(0)
    result = trainer.forward_backward(data, IMPORTANCE_SAMPLING, forward_only=True)
    assert result.metrics["num_tokens:sum"] == sum(len(d.tokens) for d in data)
    gaps = [
        float(q - p)
        for datum, logprobs in zip(data, result.logprobs, strict=True)
        for q, p, a in zip(
            datum.loss_inputs["logprobs"], logprobs, datum.loss_inputs["advantages"], strict=True
        )
        if a
    ]
    assert result.metrics["kl_sample_train:mean"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)
    assert all(name.count(":") == 1 for name in result.metrics)
