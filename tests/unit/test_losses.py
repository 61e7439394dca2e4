"""The losses against a second, float64 version by value and gradient, on both sides of every clip;
and by hand-computed numbers, since their sums and signs are those of the Tinker API."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tests.losses import CASES, CISPO, GSPO, PPO, reference_loss
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.objectives.losses import LOSSES, sequence_log_ratios

Inputs = dict[str, Tensor]


def value_and_gradient(
    choice: LossChoice, logprobs: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[float, Tensor]:
    """Of the loss over one sequence, prepared as the backend prepares it."""
    leaf = logprobs.clone().requires_grad_(True)
    if choice.loss.prepare is not None:
        rows = torch.zeros(len(logprobs), dtype=torch.int64)
        inputs = {**inputs, **choice.loss.prepare(logprobs, inputs, rows)}
    loss = choice.loss.compute(leaf, inputs, choice.settings)
    loss.backward()
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad


def agrees_with_the_reference(choice: LossChoice, logprobs: Tensor, inputs: Inputs) -> None:
    leaf = logprobs.clone().requires_grad_(True)
    expected = reference_loss(choice, leaf, inputs)
    expected.backward()
    value, gradient = value_and_gradient(choice, logprobs, inputs)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_agree_with_a_float64_version(case: str, seed: int):
    choice, make = CASES[case]
    [datum] = make(seed, [40])
    inputs = {name: torch.from_numpy(array).double() for name, array in datum.loss_inputs.items()}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(datum.target_tokens.shape, generator=generator, dtype=torch.float64)
    logprobs = inputs["logprobs"] + 0.3 * noise if "logprobs" in inputs else noise.abs().neg()
    agrees_with_the_reference(choice, logprobs, inputs)


# A ratio beside a bound, in relative distance from it.
BESIDE = {"just inside": -1e-9, "at": 0.0, "just outside": 1e-9, "far outside": 0.5}


def beside_bound(bound: str, distance: float, advantage: float) -> tuple[Tensor, Inputs, float]:
    """Log-probabilities of one token whose ratio is r, its inputs, and r as torch computes it."""
    middle = {"low": 0.8, "high": 1.2}[bound]
    outward = -1 if bound == "low" else 1
    logprobs = torch.tensor([-1.0], dtype=torch.float64)
    log_ratio = math.log(middle) + outward * distance
    inputs = {
        "logprobs": logprobs - log_ratio,
        "advantages": torch.tensor([advantage], dtype=torch.float64),
        "sequence_ratio_mask": torch.ones(1, dtype=torch.float64),
    }
    return logprobs, inputs, float(torch.exp(logprobs - inputs["logprobs"]))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("place", BESIDE)
@pytest.mark.parametrize("bound", ["low", "high"])
@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_clipped_losses_lose_their_gradient_only_beyond_the_bound_that_the_advantage_pushes_to(
    name: str, bound: str, place: str, advantage: float
):
    logprobs, inputs, ratio = beside_bound(bound, BESIDE[place], advantage)
    bounds = {"low": 0.8, "high": 1.2}
    if place == "at":
        bounds[bound] = ratio
    choice = LossChoice(name, {f"clip_{side}_threshold": b for side, b in bounds.items()})
    value, gradient = value_and_gradient(choice, logprobs, inputs)
    is_clipped = "outside" in place and (bound == "high") == (advantage > 0)
    kept = bounds[bound] if is_clipped else ratio
    assert value == pytest.approx(-kept * advantage, rel=1e-12)
    assert float(gradient) == pytest.approx(0 if is_clipped else -ratio * advantage, rel=1e-12)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("place", BESIDE)
@pytest.mark.parametrize("bound", ["low", "high"])
def test_cispo_bounds_the_weight_of_a_token_and_never_drops_it(
    bound: str, place: str, advantage: float
):
    logprobs, inputs, ratio = beside_bound(bound, BESIDE[place], advantage)
    bounds = {"low": 0.8, "high": 1.2}
    if place == "at":
        bounds[bound] = ratio
    choice = LossChoice("cispo", {f"clip_{side}_threshold": b for side, b in bounds.items()})
    value, gradient = value_and_gradient(choice, logprobs, inputs)
    weight = bounds[bound] if "outside" in place else ratio
    assert float(gradient) == pytest.approx(-weight * advantage, rel=1e-12)
    assert value == pytest.approx(-weight * advantage * float(logprobs), rel=1e-12)


def test_cross_entropy_is_minus_the_weighted_sum_of_log_probabilities():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    weights = torch.tensor([1.0, 0.5, 0.0, -0.25])
    value, gradient = value_and_gradient(
        LossChoice("cross_entropy"), logprobs, {"weights": weights}
    )
    assert value == 1.0 + 1.0 + 0.0 - 2.0
    assert torch.equal(gradient, -weights)


def test_importance_sampling_weights_advantages_by_the_probability_ratio():
    inputs = {
        "logprobs": torch.tensor([math.log(0.25), math.log(0.4), math.log(0.1)]),
        "advantages": torch.tensor([3.0, -1.0, 0.0]),
    }
    ours = torch.tensor([math.log(0.5), math.log(0.2), math.log(0.9)])
    value, _ = value_and_gradient(LossChoice("importance_sampling"), ours, inputs)
    assert value == pytest.approx(-(2 * 3.0 - 0.5 * 1.0), rel=1e-6)


def test_dro_pulls_every_token_to_the_sampler_also_without_an_advantage():
    ours = torch.tensor([-1.0, -2.0])
    inputs = {"logprobs": torch.tensor([-1.5, -1.0]), "advantages": torch.tensor([2.0, 0.0])}
    value, gradient = value_and_gradient(LossChoice("dro", {"beta": 0.5}), ours, inputs)
    assert value == pytest.approx(-(2.0 * -1.0) + 0.25 * (0.25 + 1.0))
    assert gradient.tolist() == pytest.approx([-2.0 + 0.5 * 0.5, 0.5 * -1.0])


def test_gspo_clips_a_sequence_as_one_by_the_mean_over_the_marked_tokens():
    ours = torch.tensor([-1.0, -1.0, -1.0, -9.0])
    inputs = {
        "logprobs": torch.tensor([-1.3, -0.9, -1.1, 0.0]),
        "advantages": torch.tensor([1.0, -1.0, 2.0, 0.5]),
        "sequence_ratio_mask": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    ratio = math.exp((0.3 - 0.1 + 0.1) / 3)
    choice = LossChoice("gspo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.05})
    value, gradient = value_and_gradient(choice, ours, inputs)
    assert value == pytest.approx(-(1.05 - ratio + 2 * 1.05 + 0.5 * 1.05), rel=1e-6)
    assert gradient.tolist() == pytest.approx([0.0, ratio, 0.0, 0.0], rel=1e-6)


def test_sequences_of_a_batch_have_ratios_of_their_own():
    inputs = {
        "logprobs": torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]),
        "sequence_ratio_mask": torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]),
    }
    ours = inputs["logprobs"] + torch.tensor([0.1, 0.3, 0.5, 7.0, -0.1])
    rows = torch.tensor([0, 0, 1, 1, 1])
    found = sequence_log_ratios(ours, inputs, rows)["sequence_log_ratios"]
    assert found.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.2], abs=1e-6)
    found = sequence_log_ratios(ours, inputs, torch.tensor([0, 1, 1, 2, 2]))
    assert found["sequence_log_ratios"].tolist() == pytest.approx([0.1, 0.4, 0.4, -0.1, -0.1])


@pytest.mark.parametrize("case", [name for name in CASES if "cross_entropy" not in name])
def test_on_policy_every_policy_loss_has_the_policy_gradient(case: str):
    choice, make = CASES[case]
    [datum] = make(0, [12])
    inputs = {name: torch.from_numpy(array).double() for name, array in datum.loss_inputs.items()}
    _, gradient = value_and_gradient(choice, inputs["logprobs"].clone(), inputs)
    torch.testing.assert_close(gradient, -inputs["advantages"])


@pytest.mark.parametrize("case", CASES)
def test_losses_are_sums_so_that_twice_the_batch_has_twice_the_loss(case: str):
    choice, make = CASES[case]
    [datum] = make(1, [9])
    inputs = {name: torch.from_numpy(array).double() for name, array in datum.loss_inputs.items()}
    logprobs = torch.full(datum.target_tokens.shape, -5.0, dtype=torch.float64)
    once, _ = value_and_gradient(choice, logprobs, inputs)
    twice_inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    twice, _ = value_and_gradient(choice, torch.cat([logprobs, logprobs]), twice_inputs)
    assert twice == pytest.approx(2 * once, rel=1e-12)


def test_the_defaults_are_those_that_tinker_publishes():
    defaults = {
        name: {key: setting.default for key, setting in loss.settings.items()}
        for name, loss in LOSSES.items()
    }
    assert defaults == {
        "cross_entropy": {},
        "importance_sampling": {},
        "ppo": PPO,
        "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
        "dro": {"beta": None},
        "gspo": dict.fromkeys(GSPO),
    }
    assert CISPO.keys() == GSPO.keys() == PPO.keys()
