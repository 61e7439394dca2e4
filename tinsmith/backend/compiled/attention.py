"""Attention of packed sequences on a CPU in float32, and its gradients, for training.

A block of queries at a time, against the keys that it may see and no others: PyTorch's attention
takes up to twice the time, as do its products of many small matrices. Nothing is kept of scores but
the logarithm of each row's sum, by which the backward pass makes them again (Dao et al. 2022, arXiv
2205.14135).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import ONE
from tinsmith.backend.compiled.blocks import (
    BLOCK,
    add,
    add_across,
    clear,
    copy,
    dot,
    gather,
    score,
    seen,
    soften,
    soften_back,
    take,
    turn,
    weigh,
    whole_tiles,
)
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    integers,
    own_share,
    run_on_threads,
)
from tinsmith.backend.compiled.tiles import FLOAT_BYTES, LANES, TILE_COLUMNS, whole_width

# Matrices of keys: values and the keys across; these both ways, and the gradients of both.
WIDE_FORWARD, WIDE_BACKWARD = 2, 6


def fits(heads: Tensor) -> bool:
    """Whether heads [N, heads, K] are as wide as whole tiles and lie behind each other."""
    _, num_heads, dim = heads.shape
    row, *inner = heads.stride()
    return fits_dim(dim) and row >= num_heads * dim and inner == [dim, 1]


def fits_dim(dim: int) -> bool:
    return dim % TILE_COLUMNS == 0


def num_beside(num_tokens: int, dim: int) -> int:
    """How many numbers of their own the threads have at most for sequences of so many tokens."""
    return torch.get_num_threads() * _room_size(WIDE_BACKWARD, num_tokens + TILE_COLUMNS, dim)


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries [N, H, K], keys and values [N, G, K] of packed tokens, and which sees which.

    `parts` [P, 4] says of each where it and the prompt before it begin and end (none: 0 and 0),
    `clusters` [C + 1] where those begin that share a prompt, the first of them, and where the last
    ends; both are int64. A query sees itself and what is before it, or the last `window` of these.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    parts: Tensor
    clusters: Tensor
    scaling: float
    window: int | None


def attend(heads: Heads, output: Tensor) -> Tensor:
    """Write what the parts' queries attend to into `output` [N, H, K]; the logarithm of each one's
    sum of exponentials [N, H]."""
    normalizers = output.new_empty(output.shape[:2])
    _run(_forward, WIDE_FORWARD, len(heads.parts), heads, output, normalizers)
    return normalizers


def attend_gradient(
    d_output: Tensor,
    heads: Heads,
    output: Tensor,
    normalizers: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    """Write the parts' gradients of query, key and value by that of what `attend` wrote."""
    num_clusters = len(heads.clusters) - 1
    tensors = (output, normalizers, d_output, *gradients)
    _run(_backward, WIDE_BACKWARD, num_clusters, heads, *tensors)


def _room_size(num_wide: int, num_keys: int, dim: int) -> int:
    """Of a thread: so many matrices of keys, two blocks of scores and three of queries."""
    return num_wide * num_keys * dim + 2 * BLOCK * num_keys + 3 * BLOCK * dim


def _run(function_for: Any, num_wide: int, num_tasks: int, heads: Heads, *tensors: Tensor) -> None:
    """By a function whose threads have so many matrices of keys, and so many tasks for each head
    of the keys between them."""
    (n, num_queries, dim), num_keys = heads.query.shape, heads.key.shape[1]
    inputs = heads.query, heads.key, heads.value
    for tensor in inputs:
        assert tensor.shape[2] == dim
        assert fits(tensor)
    starts = heads.parts[:, ::2]
    longest = int((heads.parts[:, 1::2] - starts).sum(1).max())
    width = whole_width(longest)
    threads = min(torch.get_num_threads(), num_tasks * num_keys)
    size = _room_size(num_wide, width, dim)
    scaling, room = heads.query.new_full((1,), heads.scaling), heads.query.new_empty(threads, size)
    numbers = [
        n, len(heads.parts), len(heads.clusters) - 1, width, size,
        width if heads.window is None else heads.window,
        *(tensor.stride(0) for tensor in inputs),
        address(heads.parts, torch.int64),
        address(heads.clusters, torch.int64),
        address(scaling),
        address(room),
        *(tensor.data_ptr() for tensor in inputs),
        *map(address, tensors),
    ]  # fmt: skip
    run_on_threads(function_for(num_queries, num_keys, dim), threads, numbers)


@cache
def _forward(num_queries: int, num_keys: int, dim: int) -> Any:
    sharing = num_queries // num_keys

    def attend_parts(argument):
        """What one thread does. Neighbouring tasks are of different parts, long and short."""
        n, num_parts, _, width, size, window, query_row, key_row, value_row = array(argument, 9)
        places = array(argument, 18)[9:]
        parts = array(integers(places[0]), (num_parts, 4))
        scaling = array(floats(places[2]), 1)[0]
        queries = array(floats(places[4]), (n, query_row))
        keys = array(floats(places[5]), (n, key_row))
        values = array(floats(places[6]), (n, value_row))
        output = array(floats(places[7]), (n, num_queries, dim))
        normalizers = array(floats(places[8]), (n, num_queries))
        thread, start, stop = own_share(num_parts * num_keys)
        room, wide = places[3] + FLOAT_BYTES * thread * size, FLOAT_BYTES * width * dim
        across = array(floats(room), (dim, width))
        v = array(floats(room + wide), (width, dim))
        room += 2 * wide
        scores = array(floats(room), (BLOCK, width))
        room += FLOAT_BYTES * BLOCK * width
        q = array(floats(room), (BLOCK, dim))
        o = array(floats(room + FLOAT_BYTES * BLOCK * dim), (BLOCK, dim))
        for task in range(start, stop):
            part, g = parts[task % num_parts], task // num_parts
            begin, first = part[0], part[3] - part[2]
            own_v = v[: whole_tiles(first + part[1] - begin)]
            gather(keys, g, part, own_v)
            turn(own_v, across)
            gather(values, g, part, own_v)
            for h in range(g * sharing, (g + 1) * sharing):
                for i in range(begin, part[1], BLOCK):
                    count, position = min(BLOCK, part[1] - i), first + i - begin
                    take(queries, h, i, count, scaling, q)
                    low, high = seen(position, count, window)
                    score(scores[:, low:high], q, across[:, low:high])
                    for r in range(count):
                        bottom = max(low, position + r - window + 1)
                        top = position + r + 1
                        normalizers[i + r, h] = soften(scores[r], low, bottom, top, high)
                    weigh(o, scores[:, low:high], v[low:high])
                    for r in range(count):
                        copy(o[r], output[i + r, h], ONE)

    return compile_for_threads(attend_parts, num_queries, num_keys, dim, LANES)


@cache
def _backward(num_queries: int, num_keys: int, dim: int) -> Any:
    sharing = num_queries // num_keys

    def attend_parts_backward(argument):
        """What one thread does: of a prompt all parts, which add to its gradients one by one."""
        n, num_parts, num_clusters, width, size, window, query_row, key_row, value_row = array(
            argument, 9
        )
        places = array(argument, 22)[9:]
        parts = array(integers(places[0]), (num_parts, 4))
        clusters = array(integers(places[1]), num_clusters + 1)
        scaling = array(floats(places[2]), 1)[0]
        queries = array(floats(places[4]), (n, query_row))
        keys = array(floats(places[5]), (n, key_row))
        values = array(floats(places[6]), (n, value_row))
        output = array(floats(places[7]), (n, num_queries, dim))
        normalizers = array(floats(places[8]), (n, num_queries))
        d_output = array(floats(places[9]), (n, num_queries * dim))
        d_queries = array(floats(places[10]), (n, num_queries, dim))
        d_keys = array(floats(places[11]), (n, num_keys, dim))
        d_values = array(floats(places[12]), (n, num_keys, dim))
        thread, start, stop = own_share(num_clusters * num_keys)
        room, wide = places[3] + FLOAT_BYTES * thread * size, FLOAT_BYTES * width * dim
        across = array(floats(room), (dim, width))
        values_across = array(floats(room + wide), (dim, width))
        v = array(floats(room + 2 * wide), (width, dim))
        k = array(floats(room + 3 * wide), (width, dim))
        dk = array(floats(room + 4 * wide), (width, dim))
        dv = array(floats(room + 5 * wide), (width, dim))
        room += 6 * wide
        scores = array(floats(room), (BLOCK, width))
        d_scores = array(floats(room + FLOAT_BYTES * BLOCK * width), (BLOCK, width))
        room += 2 * FLOAT_BYTES * BLOCK * width
        q = array(floats(room), (BLOCK, dim))
        do = array(floats(room + FLOAT_BYTES * BLOCK * dim), (BLOCK, dim))
        dq = array(floats(room + 2 * FLOAT_BYTES * BLOCK * dim), (BLOCK, dim))
        for task in range(start, stop):
            cluster, g = task % num_clusters, task // num_clusters
            for number in range(clusters[cluster], clusters[cluster + 1]):
                part = parts[number]
                begin, first = part[0], part[3] - part[2]
                own = whole_tiles(first + part[1] - begin)
                gather(keys, g, part, k[:own])
                turn(k[:own], across)
                gather(values, g, part, v[:own])
                turn(v[:own], values_across)
                clear(dk[:own])
                clear(dv[:own])
                for h in range(g * sharing, (g + 1) * sharing):
                    for i in range(begin, part[1], BLOCK):
                        count, position = min(BLOCK, part[1] - i), first + i - begin
                        take(queries, h, i, count, scaling, q)
                        take(d_output, h, i, count, ONE, do)
                        low, high = seen(position, count, window)
                        s, ds = scores[:, low:high], d_scores[:, low:high]
                        score(s, q, across[:, low:high])
                        score(ds, do, values_across[:, low:high])
                        for r in range(count):
                            along = dot(do[r], output[i + r, h])
                            bottom = max(low, position + r - window + 1)
                            soften_back(
                                scores[r], d_scores[r], normalizers[i + r, h], along, low, bottom,
                                position + r + 1, high,
                            )  # fmt: skip
                        clear(s[count:])
                        clear(ds[count:])
                        weigh(dq, ds, k[low:high])
                        for r in range(count):
                            copy(dq[r], d_queries[i + r, h], scaling)
                        add_across(dk[low:high], ds, q)
                        add_across(dv[low:high], s, do)
                for j in range(part[1] - begin):
                    copy(dk[first + j], d_keys[begin + j, g], ONE)
                    copy(dv[first + j], d_values[begin + j, g], ONE)
                for j in range(first):
                    add(dk[j], d_keys[part[2] + j, g])
                    add(dv[j], d_values[part[2] + j, g])

    return compile_for_threads(attend_parts_backward, num_queries, num_keys, dim, LANES)
