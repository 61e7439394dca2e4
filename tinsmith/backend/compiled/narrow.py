"""Products with matrices that are as narrow as adapters' ranks, on a CPU in float32.

Libraries take up to three times as long for them, above all where x is a part of wider rows.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinsmith.backend.compiled.threads import (
    array,
    compile_for_threads,
    own_share,
    run_on_threads,
    runs_compiled,
)
from tinsmith.backend.compiled.tiles import (
    FLOAT_BYTES,
    LINE,
    TILE_COLUMNS,
    TILE_ROWS,
    fetching_added_tile,
    fetching_written_tile,
)

# Terms that are summed in a register before they are added to others: of a part of x that stays in
# a core's cache, and few enough that rounding does not grow with the length of the sum.
TERMS = 128


def can_project(x: Tensor, w: Tensor) -> bool:
    return _takes(x, w) and len(x) >= TILE_ROWS


def project(x: Tensor, w: Tensor, output: Tensor) -> None:
    """Write x w [N, R] of x [N, I] and w [I, R] into parts of rows or whole ones."""
    _run(_projector(), len(x), x.shape[1], x, w, output)


def can_correlate(x: Tensor, z: Tensor) -> bool:
    return _takes(x, z) and len(x) > 0 and x.shape[1] % TILE_ROWS == 0


def correlate(x: Tensor, z: Tensor) -> Tensor:
    """x^T z [I, R] of x [N, I] and z [N, R], parts of rows or whole ones."""
    output = x.new_empty(x.shape[1], z.shape[1])
    _run(_correlator(), x.shape[1], len(x), x, z, output)
    return output


def _takes(x: Tensor, narrow: Tensor) -> bool:
    is_by_rows = x.stride(1) == narrow.stride(1) == 1
    is_whole = narrow.shape[1] % TILE_COLUMNS == 0 < narrow.shape[1]
    return runs_compiled(x) and is_by_rows and is_whole


def _run(
    function: Any, num_rows: int, num_terms: int, x: Tensor, narrow: Tensor, output: Tensor
) -> None:
    assert narrow.dtype == output.dtype == x.dtype
    assert output.stride(1) == 1
    tensors = x, narrow, output
    numbers = [num_rows, num_terms, narrow.shape[1], *(tensor.stride(0) for tensor in tensors)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    run_on_threads(function, torch.get_num_threads(), [*numbers, *addresses])


@cache
def _projector() -> Any:
    def project_rows(argument):
        n, size, rank, x_row, w_row, output_row, x, w, output = array(argument, 9)
        num_tiles = n // TILE_ROWS
        _, start, stop = own_share(num_tiles)
        # Behind the last whole tile its thread computes what is left, and rows of that tile again.
        more = 1 if stop == num_tiles and n % TILE_ROWS > 0 else 0
        for tile in range(start, stop + more):
            row, ahead = min(tile * TILE_ROWS, n - TILE_ROWS), TILE_ROWS * x_row
            for first in range(0, size, TERMS):
                depth = min(TERMS, size - first)
                a = x + FLOAT_BYTES * (row * x_row + first)
                for column in range(0, rank, TILE_COLUMNS):
                    c = output + FLOAT_BYTES * (row * output_row + column)
                    b = w + FLOAT_BYTES * (first * w_row + column)
                    if first == 0:
                        fetching_written_tile(c, output_row, a, x_row, 1, b, w_row, depth, ahead)
                    else:
                        fetching_added_tile(c, output_row, a, x_row, 1, b, w_row, depth, ahead)

    return compile_for_threads(project_rows)


@cache
def _correlator() -> Any:
    def correlate_rows(argument):
        size, n, rank, x_row, z_row, output_row, x, z, output = array(argument, 9)
        _, start, stop = own_share(size // TILE_ROWS)
        for first in range(0, n, TERMS):
            depth = min(TERMS, n - first)
            for row in range(start * TILE_ROWS, stop * TILE_ROWS, TILE_ROWS):
                a = x + FLOAT_BYTES * (first * x_row + row)
                for column in range(0, rank, TILE_COLUMNS):
                    c = output + FLOAT_BYTES * (row * output_row + column)
                    b = z + FLOAT_BYTES * (first * z_row + column)
                    if first == 0:
                        fetching_written_tile(c, output_row, a, 1, x_row, b, z_row, depth, LINE)
                    else:
                        fetching_added_tile(c, output_row, a, 1, x_row, b, z_row, depth, LINE)

    return compile_for_threads(correlate_rows)
