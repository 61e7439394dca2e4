"""Compiled products with narrow matrices are those of the formula, however rows lie in memory."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compiled import COMPILED
from tinsmith.backend.compiled import narrow
from tinsmith.backend.compiled.tiles import TILE_COLUMNS, TILE_ROWS
from tinsmith.backend.model import narrow_products

pytestmark = COMPILED
# Fewer rows than a tile has, one tile, parts of one, and more terms than are summed at once.
LENGTHS = [TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 3, 3 * narrow.TERMS + 5]
WIDTHS = [1, TILE_ROWS, 5 * TILE_ROWS, 5 * TILE_ROWS + 1, 2 * narrow.TERMS + 8]


def parts(num_rows: int, size: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, I], z [N, R] and w [I, R], parts of wider rows, of which the first is none's begin."""
    torch.manual_seed(num_rows + size)
    x = torch.randn(num_rows, size + 9)[:, 5 : 5 + size]
    z = torch.randn(num_rows, rank + 7)[:, 3 : 3 + rank]
    return x, z, torch.randn(size, rank + 2)[:, :rank]


@pytest.mark.parametrize("num_tiles", [1, 3])
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("num_rows", LENGTHS)
def test_they_are_those_of_the_formula_and_nothing_beside_is_touched(
    num_rows: int, size: int, num_tiles: int
):
    """To 1e-5 of numbers of up to 40. Where they are not for them, others take their place."""
    rank = num_tiles * TILE_COLUMNS
    x, z, w = parts(num_rows, size, rank)
    assert narrow.can_project(x, w) == (num_rows >= TILE_ROWS)
    assert narrow.can_correlate(x, z) == (size % TILE_ROWS == 0)
    wide = torch.full((num_rows, rank + 4), 7.0)
    narrow_products.project(x, w, wide[:, 2:-2])
    close_to(wide[:, 2:-2], x.double() @ w.double())
    assert wide[:, :2].eq(7).all()
    assert wide[:, -2:].eq(7).all()
    close_to(narrow_products.correlate(x, z), x.double().t() @ z.double())


def close_to(found: Tensor, exact: Tensor) -> None:
    assert (found - exact).abs().max() <= 1e-5 * max(1.0, float(exact.abs().max()))


def test_what_they_are_not_for_they_do_not_take():
    x, z, w = parts(2 * TILE_ROWS, 2 * TILE_ROWS, TILE_COLUMNS)
    across = x.contiguous().t()
    for other in (x.double(), across, x.to(torch.bfloat16)):
        assert not narrow.can_project(other, w)
        assert not narrow.can_correlate(other, z)
    for too_few in (w[:, :-1], w[:, :0], w.contiguous().t()):
        assert not narrow.can_project(x, too_few)
    assert not narrow.can_correlate(x[:0], z[:0])
    assert (
        narrow_products.correlate(x[:0], z[:0]).tolist()
        == torch.zeros(len(x), TILE_COLUMNS).tolist()
    )


def test_sums_of_many_terms_round_less_than_one_after_the_other():
    count = 200_000
    x, w = torch.full((TILE_ROWS, count), 0.1), torch.full((count, TILE_COLUMNS), 0.1)
    output = torch.empty(TILE_ROWS, TILE_COLUMNS)
    narrow.project(x, w, output)
    exact = count * float(x[0, 0]) ** 2
    one_by_one = np.cumsum((x[0] * w[:, 0]).numpy(), dtype=np.float32)[-1]
    # Each addition rounds by half of a last bit at most.
    bound = (count / narrow.TERMS + narrow.TERMS) * 2**-24
    assert abs(one_by_one / exact - 1) > bound
    for sums in (output, narrow.correlate(w[:, :TILE_ROWS], w)):
        assert (sums / exact - 1).abs().max() <= bound


@pytest.mark.parametrize("num_rows", LENGTHS[1:])
def test_results_do_not_depend_on_the_number_of_threads(num_rows: int):
    x, z, w = parts(num_rows, 40, TILE_COLUMNS)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        output = torch.empty(num_rows, TILE_COLUMNS)
        narrow.project(x, w, output)
        found.append((output, narrow.correlate(x, z)))
    for one in found[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(one, found[0], strict=True))
