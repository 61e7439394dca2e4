"""Attention of one new token a row on a CPU in float32, compiled when it is first needed.

PyTorch's own is made for many queries: for so few it takes twice the time, and it looks at as many
keys of every row as the longest has. What it takes is the time in which keys and values come from
memory, so those of a prompt that rows share are read from one place, and the next ones are fetched
while the present ones are computed with.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import NOTHING, ZERO, exp
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    inlined,
    integers,
    own_share,
    run_on_threads,
)
from tinsmith.backend.compiled.tiles import BYTE, FLOAT_BYTES, LINE, fetch


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention [n, H, 1, V] of queries [n, H, 1, K] over keys and values [n, H / G, T, K and V].

    `rows` [n, 3] says of each how many it has, the new token's included, or sees the last `window`
    of; and that it shares the first ones, how many, with which row, from whose place they are read.

    A row's numbers depend, bit for bit, on nothing but its own: not on n, the lengths of others, T,
    the number of threads or the row that it shares with.
    """
    n, num_heads, _, dim = query.shape
    num_key_heads, capacity = keys.shape[1:3]
    num_sharing = num_heads // num_key_heads
    function = _compiled(num_sharing, dim, values.shape[-1])
    query = query.contiguous()
    output = query.new_empty(n, num_heads, 1, values.shape[-1])
    threads = torch.get_num_threads()
    scratch = query.new_empty(threads, num_sharing, capacity)
    factor = query.new_full((1,), dim**-0.5 if scaling is None else scaling)
    tensors = (query, keys, values, output, scratch, factor)
    assert rows.shape == (n, 3)
    assert len(keys) == len(values) == n
    numbers = (threads, n, num_key_heads, capacity, capacity if window is None else window)
    run_on_threads(
        function, threads, [*numbers, address(rows, torch.int64), *map(address, tensors)]
    )
    return output


@cache
def _compiled(num_sharing: int, dim: int, value_dim: int) -> Any:
    """For so many queries a key, and widths that the compiler knows."""

    def share(argument):
        """What one thread does. Neighbouring tasks are of different rows, long and short."""
        threads, n, num_key_heads, capacity, window = array(argument, 5)
        addresses = array(argument, 12)[5:]
        rows = array(integers(addresses[0]), (n, 3))
        queries = array(floats(addresses[1]), (n, num_key_heads, num_sharing, dim))
        keys = array(floats(addresses[2]), (n, num_key_heads, capacity, dim))
        values = array(floats(addresses[3]), (n, num_key_heads, capacity, value_dim))
        outputs = array(floats(addresses[4]), (n, num_key_heads, num_sharing, value_dim))
        scratch = array(floats(addresses[5]), (threads, num_sharing, capacity))
        scaling = array(floats(addresses[6]), 1)[0]
        thread, start, stop = own_share(n * num_key_heads)
        largest, weights = np.empty(num_sharing, np.float32), scratch[thread]
        for task in range(start, stop):
            row, head = task % n, task // n
            source, middle, end = rows[row]
            first = max(0, end - window)
            middle = max(first, middle)
            behind = min(task + 1, stop - 1)
            next_row, next_head = behind % n, behind // n
            query, output = queries[row, head], outputs[row, head]
            shared, own = slice(first, middle), slice(middle, end)
            shared_values, own_values = values[source, head, shared], values[row, head, own]
            own_weights = weights[:, middle - first :]
            largest[:] = NOTHING
            _score(query, keys[source, head, shared], scaling, weights, largest, shared_values)
            _score(query, keys[row, head, own], scaling, own_weights, largest, own_values)
            _exponentiate(weights, largest, end - first)
            output[:] = ZERO
            _add(weights, shared_values, output, keys[rows[next_row, 0], next_head])
            _add(own_weights, own_values, output, keys[next_row, next_head, rows[next_row, 1] :])
            for g in range(num_sharing):
                for i in range(value_dim):
                    output[g, i] /= largest[g]

    return compile_for_threads(share, num_sharing, dim, value_dim)


@inlined
def _score(query, keys, scaling, weights, largest, values):
    """Weights [G, t] before their exponentials, and the largest of each g. What is fetched
    meanwhile are the values of the same tokens."""
    for t in range(keys.shape[0]):
        _fetch(values, t)
        for g in range(query.shape[0]):
            total = ZERO
            for i in range(query.shape[1]):
                total += query[g, i] * keys[t, i]
            weights[g, t] = total * scaling
            if weights[g, t] > largest[g]:
                largest[g] = weights[g, t]


@inlined
def _exponentiate(weights, largest, size):
    """Weights, and in the place of the largest ones their sums."""
    for g in range(weights.shape[0]):
        total = ZERO
        for t in range(size):
            weights[g, t] = exp(weights[g, t] - largest[g])
            total += weights[g, t]
        largest[g] = total


@inlined
def _add(weights, values, sums, next_keys):
    """Four values at a time, since each time the sums come from memory and go there."""
    size = values.shape[0]
    in_fours = size - size % 4
    for t in range(size):
        _fetch(next_keys, t)
    for g in range(sums.shape[0]):
        for t in range(0, in_fours, 4):
            a, b, c, d = weights[g, t], weights[g, t + 1], weights[g, t + 2], weights[g, t + 3]
            for i in range(sums.shape[1]):
                four = a * values[t, i] + b * values[t + 1, i]
                sums[g, i] += four + c * values[t + 2, i] + d * values[t + 3, i]
        for t in range(in_fours, size):
            for i in range(sums.shape[1]):
                sums[g, i] += weights[g, t] * values[t, i]


@intrinsic
def _prefetch(_: Any, address: Any):
    """Have the cache line at an address read meanwhile; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fetch(builder, builder.inttoptr(arguments[0], BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@inlined
def _fetch(tensor, t):
    """Have what is at a place read meanwhile; there may be none."""
    width = FLOAT_BYTES * tensor.shape[1]
    for byte in range(0, width, FLOAT_BYTES * LINE):
        _prefetch(tensor.ctypes.data + width * t + byte)  # pyright: ignore[reportCallIssue]
