"""Products of few rows with weights that are packed once, on a CPU in float32.

Weights lie in panels, of as many outputs as a tile is wide, which are read one after the other,
once for a block of rows. Libraries pack for many rows, and take longer for few.

An output is summed in an order that the number of inputs alone decides, so that neither the rows
beside it nor the number of threads show in it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import sigmoid
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    inlined,
    own_share,
    run_on_threads,
)
from tinsmith.backend.compiled.tiles import (
    FLOAT_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    added_tile,
    written_tile,
)

TERMS = 512  # that are summed in a register before they are added to others
# Of x, that are multiplied by a panel while it is in a core's cache; up to some 1,500 inputs wide
# they stay there themselves.
BLOCK_ROWS = 128


def can_pack(num_outputs: int, num_inputs: int) -> bool:
    """Whether a weight of a shape consists of whole panels."""
    return num_outputs % TILE_COLUMNS == 0 and num_outputs > 0 and num_inputs > 0


def pack(weight: Tensor) -> Tensor:
    """Panels [O / C, I, C] of W [O, I]."""
    return weight.unflatten(0, (-1, TILE_COLUMNS)).transpose(1, 2).contiguous()


def multiply(x: Tensor, panels: Tensor) -> Tensor:
    """x W^T [..., O] of x [..., I] and the panels of W."""
    return _run(_multiplier(), x, [panels])


def gate(x: Tensor, gates: Tensor, ups: Tensor) -> Tensor:
    """silu(x G^T) (x U^T) [..., O] of x [..., I] and the panels of G and U, of one size."""
    assert gates.shape == ups.shape
    tiles = x.new_empty(torch.get_num_threads(), TILE_ROWS, TILE_COLUMNS)
    return _run(_gate(), x, [gates, ups], tiles)


def _run(function: Any, x: Tensor, weights: Sequence[Tensor], *room: Tensor) -> Tensor:
    *leading, size = x.shape
    num_panels = len(weights[0])
    assert weights[0].shape[1] == size
    x = x.reshape(-1, size).contiguous()
    num_rows = len(x)
    if num_rows < TILE_ROWS:
        x = F.pad(x, (0, 0, 0, TILE_ROWS - num_rows))
    y = x.new_empty(len(x), num_panels * TILE_COLUMNS)
    numbers = [len(x), size, num_panels, *map(address, (x, *weights, y, *room))]
    run_on_threads(function, torch.get_num_threads(), numbers)
    return y[:num_rows].view(*leading, y.shape[1])


@cache
def _multiplier() -> Any:
    def multiply_rows(argument):
        n, size, num_panels, x, w, y = array(argument, 6)
        _, start, stop = own_share(num_panels)
        width = num_panels * TILE_COLUMNS
        for block in range(0, n, BLOCK_ROWS):
            for panel in range(start, stop):
                b = w + FLOAT_BYTES * panel * size * TILE_COLUMNS
                for first in range(block, min(block + BLOCK_ROWS, n), TILE_ROWS):
                    row = min(first, n - TILE_ROWS)
                    c = y + FLOAT_BYTES * (row * width + panel * TILE_COLUMNS)
                    _multiply_tile(c, width, x + FLOAT_BYTES * row * size, b, size)

    return compile_for_threads(multiply_rows)


@cache
def _gate() -> Any:
    def gate_rows(argument):
        n, size, num_panels, x, gates, ups, y, tiles = array(argument, 8)
        thread, start, stop = own_share(num_panels)
        width = num_panels * TILE_COLUMNS
        own = tiles + FLOAT_BYTES * thread * TILE_ROWS * TILE_COLUMNS
        up = array(floats(own), (TILE_ROWS, TILE_COLUMNS))
        inner = array(floats(y), (n, width))
        for block in range(0, n, BLOCK_ROWS):
            for panel in range(start, stop):
                offset, column = FLOAT_BYTES * panel * size * TILE_COLUMNS, panel * TILE_COLUMNS
                for first in range(block, min(block + BLOCK_ROWS, n), TILE_ROWS):
                    row = min(first, n - TILE_ROWS)
                    a, c = x + FLOAT_BYTES * row * size, y + FLOAT_BYTES * (row * width + column)
                    _multiply_tile(c, width, a, gates + offset, size)
                    _multiply_tile(own, TILE_COLUMNS, a, ups + offset, size)
                    for i in range(TILE_ROWS):
                        g = inner[row + i, column : column + TILE_COLUMNS]
                        for j in range(TILE_COLUMNS):
                            g[j] = g[j] * sigmoid(g[j]) * up[i, j]

    return compile_for_threads(gate_rows)


@inlined
def _multiply_tile(c, c_row, a, b, size):
    """A tile of the product of whole rows and a panel, by their addresses."""
    for first in range(0, size, TERMS):
        own_a, own_b = a + FLOAT_BYTES * first, b + FLOAT_BYTES * first * TILE_COLUMNS
        depth = min(TERMS, size - first)
        if first == 0:
            written_tile(c, c_row, own_a, size, 1, own_b, TILE_COLUMNS, depth)
        else:
            added_tile(c, c_row, own_a, size, 1, own_b, TILE_COLUMNS, depth)
