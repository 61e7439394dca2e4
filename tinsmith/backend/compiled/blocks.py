"""Steps of attention to packed sequences by blocks of queries, for use in compiled functions.

A block of queries is [BLOCK, K], its scores [BLOCK, keys]. A row may see the keys from `bottom` to
`top`; those from `low` to `high` are whole tiles that contain them.
"""

import math
from typing import Any

import numpy as np

from tinsmith.backend.compiled.arithmetic import ONE, ZERO, exp, largest
from tinsmith.backend.compiled.threads import inlined
from tinsmith.backend.compiled.tiles import (
    FLOAT_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    add_product,
    multiply,
    whole_width,
)

BLOCK = 16
whole_tiles: Any = inlined(whole_width)
assert BLOCK % TILE_ROWS == TILE_COLUMNS % TILE_ROWS == 0


@inlined
def copy(source, target, factor):
    for d in range(len(target)):
        target[d] = source[d] * factor


@inlined
def add(source, target):
    for d in range(len(target)):
        target[d] += source[d]


@inlined
def dot(x, y):
    total = ZERO
    for d in range(len(x)):
        total += x[d] * y[d]
    return total


@inlined
def gather(heads, h, part, rows):
    """What head h of [N, heads x K] has of a prompt and its part, and zeros behind them."""
    begin, stop, prompt, prompt_stop = part[0], part[1], part[2], part[3]
    first, dim = prompt_stop - prompt, rows.shape[1]
    size = first + stop - begin
    for j in range(size):
        row = prompt + j if j < first else begin + j - first
        copy(heads[row, h * dim : (h + 1) * dim], rows[j], ONE)
    clear(rows[size:])


@inlined
def clear(rows):
    for j in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            rows[j, d] = ZERO


@inlined
def turn(rows, columns):
    """Rows as the first columns."""
    for j in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            columns[d, j] = rows[j, d]


@inlined
def take(heads, h, start, count, factor, block):
    """Rows of a head of [N, heads x K], times a factor, and zeros behind them."""
    dim = block.shape[1]
    for r in range(count):
        copy(heads[start + r, h * dim : (h + 1) * dim], block[r], factor)
    clear(block[count:])


@inlined
def seen(position, count, window):
    """From and to which key, in whole tiles, `count` queries from a position on see any."""
    low = max(0, position - window + 1)
    return low - low % TILE_COLUMNS, whole_tiles(position + count)


@inlined
def soften(scores, low, bottom, top, high):
    """Their softmax from bottom to top, zeros elsewhere; the logarithm of the sum."""
    visible = scores[bottom:top]
    highest, total = largest(visible), ZERO
    for j in range(len(visible)):
        visible[j] = exp(visible[j] - highest)
    for j in range(len(visible)):
        total += visible[j]
    share = ONE / total
    for j in range(len(visible)):
        visible[j] *= share
    hide(scores, low, bottom, top, high)
    return highest + np.float32(math.log(total))


@inlined
def soften_back(scores, d_scores, normalizer, along, low, bottom, top, high):
    """Probabilities p, and p (dp - sum(p dp)), that sum being do . o."""
    visible, d_visible = scores[bottom:top], d_scores[bottom:top]
    for j in range(len(visible)):
        p = exp(visible[j] - normalizer)
        visible[j] = p
        d_visible[j] = p * (d_visible[j] - along)
    hide(scores, low, bottom, top, high)
    hide(d_scores, low, bottom, top, high)


@inlined
def hide(scores, low, bottom, top, high):
    """Zeros where a row sees nothing."""
    before, behind = scores[low:bottom], scores[top:high]
    for j in range(len(before)):
        before[j] = ZERO
    for j in range(len(behind)):
        behind[j] = ZERO


@inlined
def score(scores, block, across):
    """A block's products with the columns of `across`."""
    depth = block.shape[1]
    multiply(
        scores.ctypes.data, row_of(scores), block.ctypes.data, depth, 1,
        across.ctypes.data, row_of(across), BLOCK, across.shape[1], depth,
    )  # fmt: skip


@inlined
def weigh(block, scores, rows):
    """Sums of rows by the scores of each of a block."""
    dim = block.shape[1]
    multiply(
        block.ctypes.data, dim, scores.ctypes.data, row_of(scores), 1, rows.ctypes.data, dim,
        BLOCK, dim, rows.shape[0],
    )  # fmt: skip


@inlined
def add_across(rows, scores, block):
    """Add to each row the sums of the block's by their scores of it."""
    dim = block.shape[1]
    add_product(
        rows.ctypes.data, dim, scores.ctypes.data, 1, row_of(scores), block.ctypes.data, dim,
        rows.shape[0], dim, BLOCK,
    )  # fmt: skip


@inlined
def row_of(matrix):
    """How far its rows are apart."""
    return matrix.strides[0] // FLOAT_BYTES
