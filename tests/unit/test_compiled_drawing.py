"""Tokens that are drawn by compiled code are those of the cumulated probabilities."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compiled import COMPILED
from tinsmith.backend.compiled import drawing
from tinsmith.backend.sampling.choose import choose
from tinsmith.backend.sampling.request import SamplingRequest

pytestmark = COMPILED
SIZES = [1, 15, drawing.BLOCK, 3 * drawing.BLOCK + 7, 8192, 151_936]
NUM_ROWS, NUM_DRAWS = 5, 40
LAST = math.nextafter(1.0, 0.0)


def drawn(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as spread as a model's, temperatures, and numbers in [0, 1)."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(NUM_ROWS, size, generator=generator) * 4 + 20
    uniform = torch.rand(NUM_ROWS, NUM_DRAWS, generator=generator, dtype=torch.float64)
    uniform[:, 0], uniform[:, 1] = 0.0, LAST
    return logits, torch.tensor([1.0, 0.5, 2.0, 1e-30, 30.0]), uniform


@pytest.mark.parametrize("size", SIZES)
def test_they_are_those_of_float64_but_within_rounding_of_a_bound(size: int):
    logits, temperatures, uniform = drawn(size)
    tokens, logprobs = drawing.draw_tokens(logits, temperatures, uniform)
    top = logits.double().amax(1, keepdim=True)
    exact = torch.log_softmax((logits.double() - top) / temperatures.double()[:, None], 1)
    # Two numbers of up to 80 divided and subtracted, of which the first is rounded to float32.
    assert (logprobs - exact.gather(1, tokens)).abs().max() <= 1e-5
    above = exact.exp().cumsum(1).gather(1, tokens)
    below = above - exact.exp().gather(1, tokens)
    assert (uniform <= above + 1e-6).all()
    assert (uniform >= below - 1e-6).all()


def test_what_has_no_probability_is_not_drawn():
    """However little is drawn with, and though it stands first or last."""
    logits = torch.full((2, 3 * drawing.BLOCK), -math.inf)
    logits[:, 2 * drawing.BLOCK - 3 : 2 * drawing.BLOCK - 1] = torch.tensor([3.0, 3.0])
    uniform = torch.tensor([[0.0, 0.49, 0.51, LAST]] * 2, dtype=torch.float64)
    tokens, logprobs = drawing.draw_tokens(logits, torch.tensor([1.0, 0.1]), uniform)
    first = 2 * drawing.BLOCK - 3
    assert tokens.tolist() == [[first, first, first + 1, first + 1]] * 2
    assert logprobs.flatten().tolist() == pytest.approx([math.log(0.5)] * 8)


def test_a_greedy_row_takes_the_first_of_the_likeliest_at_temperature_1():
    logits = torch.zeros(1, drawing.BLOCK + 9)
    logits[0, [7, drawing.BLOCK + 1]] = 2.0
    tokens, logprobs = drawing.draw_tokens(
        logits, torch.zeros(1), torch.tensor([[0.0, LAST]], dtype=torch.float64)
    )
    assert tokens.tolist() == [[7, 7]]
    exact = torch.log_softmax(logits.double(), 1)[0, 7].item()
    assert logprobs.tolist()[0] == pytest.approx([exact] * 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("where", [300, slice(None)])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_useless_logits_give_useless_log_probabilities(
    bad: float, where: int | slice, temperature: float
):
    logits = torch.linspace(-3, 3, 2 * drawing.BLOCK)[None].clone()
    logits[0, where] = bad
    tokens, logprobs = drawing.draw_tokens(
        logits, torch.tensor([temperature]), torch.tensor([[0.7]], dtype=torch.float64)
    )
    assert 0 <= tokens.item() < logits.shape[1]
    assert logprobs.isnan().all()


@pytest.mark.parametrize("size", SIZES)
def test_a_rows_draws_are_its_own_bit_for_bit(size: int):
    logits, temperatures, uniform = drawn(size)
    torch.set_num_threads(2)
    together = drawing.draw_tokens(logits, temperatures, uniform)
    torch.set_num_threads(1)
    alone = [
        drawing.draw_tokens(logits[i : i + 1], temperatures[i : i + 1], uniform[i : i + 1])
        for i in range(NUM_ROWS)
    ]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


def test_rows_that_want_more_than_a_token_change_nothing_for_the_others():
    plain = SamplingRequest((1,), 1, 1, 1.0, -1, 1.0, 0, frozenset())
    requests = [
        plain,
        replace(plain, top_k=3),
        replace(plain, temperature=0.0),
        replace(plain, topk_sample_logprobs=2),
        replace(plain, temperature=1e-50),
    ]
    logits, _, uniform = drawn(700)
    numbers = uniform[:, 2:3].numpy()
    together = choose(logits, requests, numbers)
    assert [top is not None for top in together.top] == [False, False, False, True, False]
    for i, request in enumerate(requests):
        alone = choose(logits[i : i + 1], [request], numbers[i : i + 1])
        assert np.array_equal(alone.tokens_nk[0], together.tokens_nk[i])
        assert np.array_equal(alone.logprobs_nk[0], together.logprobs_nk[i])
    # A temperature that float32 does not have is not greedy: what is drawn is certain.
    assert together.logprobs_nk[4, 0] == 0
    assert together.logprobs_nk[2, 0] < 0
