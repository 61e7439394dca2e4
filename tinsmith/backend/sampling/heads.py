"""Queries, keys and values of one new token a row on a CPU in float32, from their product to the
places where attention reads them. Compiled, it is one pass over its numbers."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import ONE, norm_factor, rotate
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    integers,
    own_share,
    run_on_threads,
)


def place_heads(
    heads: Tensor,
    rotation: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float] | None,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
) -> Tensor:
    """Rotated queries [n, H, 1, K] of `heads` [n, H + 2 G, K]: a new token's queries, keys and
    values as they come from their product. Its keys, rotated too, and values go to the places
    behind the others in [n, G, T, K]; `rows` [n, 3] ends with a row's length with the new token.

    `rotation` is cos and sin [n, K], this with the sign of the half that it multiplies; `norm` the
    weights [H + G, K] and epsilon of the norms of queries and keys, if they have such.
    """
    n, num_heads, dim = heads.shape
    num_key_heads, capacity = keys.shape[1:3]
    num_queries = num_heads - 2 * num_key_heads
    query = heads.new_empty(n, num_queries, 1, dim)
    weight, epsilon = (heads.new_ones(1), 0.0) if norm is None else norm
    settings = torch.tensor([epsilon])
    tensors = (heads, *rotation, weight, settings, keys, values, query)
    assert rows.shape == (n, 3)
    assert keys.shape == values.shape == (n, num_key_heads, capacity, dim)
    assert all(angles.shape == (n, dim) for angles in rotation)
    function = _placer(num_queries, num_key_heads, dim, norm is not None)
    numbers = [n, capacity, address(rows, torch.int64), *map(address, tensors)]
    run_on_threads(function, torch.get_num_threads(), numbers)
    return query


@cache
def _placer(num_queries: int, num_key_heads: int, dim: int, has_norm: bool) -> Any:
    num_rotated = num_queries + num_key_heads
    num_heads = num_rotated + num_key_heads

    def place_rows(argument):
        numbers = array(argument, 11)
        n, capacity = numbers[0], numbers[1]
        rows = array(integers(numbers[2]), (n, 3))
        heads = array(floats(numbers[3]), (n, num_heads, dim))
        cos, sin = array(floats(numbers[4]), (n, dim)), array(floats(numbers[5]), (n, dim))
        weight = array(floats(numbers[6]), (num_rotated, dim))
        epsilon = array(floats(numbers[7]), 1)[0]
        keys = array(floats(numbers[8]), (n, num_key_heads, capacity, dim))
        values = array(floats(numbers[9]), (n, num_key_heads, capacity, dim))
        queries = array(floats(numbers[10]), (n, num_queries, dim))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            last = rows[row, 2] - 1
            for h in range(num_rotated):
                k = h - num_queries
                place = queries[row, h] if k < 0 else keys[row, k, last]
                x = heads[row, h]
                factor = norm_factor(x, epsilon) if has_norm else ONE
                rotate(x, factor, weight[h], has_norm, cos[row], sin[row], place)
            for h in range(num_key_heads):
                values[row, h, last] = heads[row, num_rotated + h]

    return compile_for_threads(place_rows, num_queries, num_key_heads, dim, has_norm)
