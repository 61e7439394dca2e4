"""Compiled attention of a new token is that of the formula, and a row's numbers are its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from tests.compiled import COMPILED
from tinsmith.backend.compiled.arithmetic import exp
from tinsmith.backend.sampling import decode_attention
from tinsmith.backend.sampling.decode_attention import attend_rows

pytestmark = COMPILED
# Rows, heads of keys, queries that share one, widths of keys and values, places.
SHAPES = [(5, 2, 3, 16, 8, 70), (1, 1, 7, 12, 12, 64), (4, 4, 2, 64, 64, 600)]
TOLERANCE = 2e-6
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_attend_to_their_own_keys_as_the_formula_says_in_float64(
    shape: tuple[int, ...], window: int | None
):
    query, keys, values, rows = drawn(shape)
    output = attend_rows(query, keys, values, rows, 0.3, window)
    for row, length in enumerate(rows[:, 2].tolist()):
        first = 0 if window is None else max(0, length - window)
        k, v = (tensor[row, :, first:length].double() for tensor in (keys, values))
        q = query[row].view(k.shape[0], -1, k.shape[-1]).double()
        weights = (torch.einsum("hgd,htd->hgt", q, k) * 0.3).softmax(-1)
        exact = torch.einsum("hgt,htd->hgd", weights, v).reshape(output[row].shape)
        assert torch.allclose(output[row].double(), exact, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_neither_other_rows_nor_threads_nor_places_change_a_bit(shape: tuple[int, ...]):
    query, keys, values, rows = drawn(shape)
    torch.set_num_threads(2)
    together = attend_rows(query, keys, values, rows, None, None)
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        for row, (_, shared, length) in enumerate(rows.tolist()):
            own = slice(row, row + 1)
            k, v = (tensor[own, :, :length].contiguous() for tensor in (keys, values))
            alone = attend_rows(query[own], k, v, torch.tensor([[0, shared, length]]), None, None)
            assert torch.equal(alone, together[own])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_shared_keys_are_read_from_the_row_that_has_them_too(
    shape: tuple[int, ...], window: int | None
):
    """And from it alone, or two rows would fetch them twice; to the same bits."""
    query, keys, values, rows = drawn(shape)
    num_shared = int(rows[:, 1].min())
    rows[:, 1] = num_shared
    for tensor in (keys, values):
        tensor[:, :, :num_shared] = tensor[:1, :, :num_shared]
    by_themselves = attend_rows(query, keys, values, rows, None, window)
    rows[:, 0] = 0
    for tensor in (keys, values):
        tensor[1:, :, :num_shared] = float("nan")
    assert torch.equal(attend_rows(query, keys, values, rows, None, window), by_themselves)


def test_the_exponential_is_right_to_two_bits_and_no_number_stays_none():
    @numba.njit
    def of_all(x: np.ndarray, y: np.ndarray):
        for i in range(len(x)):
            y[i] = exp(x[i])

    x = np.concatenate([np.linspace(-87, 0, 100_003), [-0.0, -1e-30]]).astype(np.float32)
    y = np.empty_like(x)
    of_all(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(y / exact - 1).max() < 2 * np.finfo(np.float32).eps
    rest = np.array([-88, -1e30, -np.inf, np.nan], np.float32)
    y = np.empty_like(rest)
    of_all(rest, y)
    assert np.all((y[:3] >= 0) & (y[:3] < 2e-38))
    assert np.isnan(y[3])


def test_a_team_that_is_smaller_than_asked_for_does_all_the_work():
    program = (
        "import torch; from tests.unit.test_decode_attention import *; torch.set_num_threads(2);"
        "print(attend_rows(*drawn(SHAPES[0]), None, None).double().sum().item())"
    )
    sums = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"OMP_THREAD_LIMIT": limit},
            capture_output=True, text=True, check=True,
        ).stdout
        for limit in ("1", "2")
    ]  # fmt: skip
    assert sums[0] == sums[1]
    assert float(sums[0]) == attend_rows(*drawn(SHAPES[0]), None, None).double().sum().item()


def test_a_value_that_is_not_a_number_is_seen_in_its_row_alone():
    query, keys, values, rows = drawn(SHAPES[0])
    keys[1, 0, 0, 0] = float("nan")
    output = attend_rows(query, keys, values, rows, None, None)
    assert output.isnan().flatten(1).any(1).tolist() == [False, True, False, False, False]


def test_it_is_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    real = numba.cfunc

    def refuse(signature: Any, cache: bool = False, **options: Any):
        if cache:
            raise RuntimeError("cannot cache function 'share': no locator available for file")
        return real(signature, **options)

    monkeypatch.setattr(numba, "cfunc", refuse)
    decode_attention._compiled.cache_clear()
    assert attend_rows(*drawn(SHAPES[0]), None, None).isfinite().all()
    decode_attention._compiled.cache_clear()


def drawn(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that share nothing with others, and so read all from their own places."""
    n, heads, num_sharing, dim, value_dim, places = shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lengths = torch.randint(1, places + 1, (n,))
        shared = (lengths * torch.rand(n)).long()
        return (
            torch.randn(n, heads * num_sharing, 1, dim),
            torch.randn(n, heads, places, dim),
            torch.randn(n, heads, places, value_dim),
            torch.stack([torch.arange(n), shared, lengths], 1),
        )
