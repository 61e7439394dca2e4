"""The losses by hand-computed numbers; their sums and signs are those of the Tinker API."""

import math

import pytest
import torch

from tinsmith.objectives.losses import LOSSES


def test_cross_entropy_is_minus_the_weighted_sum_of_log_probabilities():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    loss = LOSSES["cross_entropy"].compute(
        logprobs, {"weights": torch.tensor([1.0, 0.5, 0.0, -0.25])}
    )
    assert float(loss) == 1.0 + 1.0 + 0.0 - 2.0


def test_importance_sampling_weights_advantages_by_the_probability_ratio():
    ours = torch.tensor([math.log(0.5), math.log(0.2), math.log(0.9)])
    theirs = torch.tensor([math.log(0.25), math.log(0.4), math.log(0.1)])
    advantages = torch.tensor([3.0, -1.0, 0.0])
    loss = LOSSES["importance_sampling"].compute(
        ours, {"logprobs": theirs, "advantages": advantages}
    )
    assert float(loss) == pytest.approx(-(2 * 3.0 - 0.5 * 1.0), rel=1e-6)


def test_importance_sampling_on_policy_has_the_policy_gradient():
    ours = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([3.0, -1.0, 0.5])
    inputs = {"logprobs": ours.detach().clone(), "advantages": advantages}
    LOSSES["importance_sampling"].compute(ours, inputs).backward()
    assert ours.grad is not None
    assert torch.equal(ours.grad, -advantages)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_sums_so_that_twice_the_batch_has_twice_the_loss(name: str):
    loss = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(5, generator=generator)
    inputs = {key: torch.randn(5, generator=generator) for key in loss.inputs}
    twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
    once = loss.compute(logprobs, inputs)
    assert float(loss.compute(torch.cat([logprobs, logprobs]), twice)) == pytest.approx(
        2 * float(once), rel=1e-6
    )
