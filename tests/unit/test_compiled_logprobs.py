"""Compiled log-probabilities and their gradient are those of the formula, a row's its own."""

import math

import pytest
import torch
from torch import Tensor

from tests.compiled import COMPILED
from tinsmith.backend.compiled import logprobs
from tinsmith.backend.model.chosen_logprobs import chosen_logprobs

pytestmark = COMPILED
SIZES = [1, 15, 700, 8192]


def drawn(num_rows: int, size: int, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as spread as a model's, targets, some of them twice, and their gradient."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(num_rows, size, generator=generator) * 8 + 20
    targets = torch.randint(size, (num_rows, num_targets), generator=generator)
    targets[:, -1] = targets[:, 0]
    return logits, targets, torch.randn(num_rows, num_targets, generator=generator)


@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_they_and_their_gradient_are_those_of_float64(size: int, num_targets: int):
    logits, targets, gradient = drawn(9, size, num_targets)
    exact_logits = logits.double().requires_grad_()
    exact = torch.log_softmax(exact_logits, 1).gather(1, targets)
    exact.backward(gradient.double())
    mine = logits.clone().requires_grad_()
    found = chosen_logprobs(mine, targets)
    found.backward(gradient)
    assert mine.grad is not None
    assert exact_logits.grad is not None
    # A difference of two numbers of up to 50, and probabilities by it.
    assert (found - exact).abs().max() <= 1e-5
    assert (mine.grad - exact_logits.grad).abs().max() <= 2e-5


@pytest.mark.parametrize("size", SIZES)
def test_a_rows_numbers_are_its_own_bit_for_bit(size: int):
    logits, targets, gradient = drawn(9, size, 2)
    torch.set_num_threads(2)
    found, normalizers = logprobs.chosen_logprobs(logits, targets)
    d_logits = logprobs.logits_gradient(gradient, logits, targets, normalizers)
    torch.set_num_threads(1)
    for i in range(len(logits)):
        row = slice(i, i + 1)
        one, normalizer = logprobs.chosen_logprobs(logits[row], targets[row])
        assert torch.equal(one, found[row])
        back = logprobs.logits_gradient(gradient[row], logits[row], targets[row], normalizer)
        assert torch.equal(back, d_logits[row])


def test_logits_far_below_or_above_zero_do_not_overflow():
    logits = torch.tensor([[-2000.0, -2001.0], [2000.0, 1999.0], [0.0, -torch.inf]])
    found, _ = logprobs.chosen_logprobs(logits, torch.tensor([[0, 1]] * 3))
    one = -math.log1p(math.exp(-1))
    expected = torch.tensor([[one, one - 1], [one, one - 1], [0.0, -torch.inf]])
    # float32 numbers near 2,000 are 1.2e-4 apart.
    torch.testing.assert_close(found, expected, rtol=0, atol=1.3e-4)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 5, 20])
def test_what_is_no_number_is_seen_in_its_row_alone(value: float, place: int):
    """A model that diverged is told of, and not trained on."""
    logits, targets, gradient = drawn(3, 21, 1)
    logits[1, place] = value
    found, normalizers = logprobs.chosen_logprobs(logits, targets)
    assert found.isnan().flatten().tolist() == [False, True, False]
    d_logits = logprobs.logits_gradient(gradient, logits, targets, normalizers)
    assert d_logits.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("target", [-1, 21])
def test_a_target_outside_of_the_logits_is_not_followed(target: int):
    logits, targets, _ = drawn(3, 21, 1)
    targets[2] = target
    with pytest.raises(AssertionError):
        chosen_logprobs(logits, targets)
