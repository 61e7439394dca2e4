"""What a layer does between its products to each token by itself, on a CPU in float32, and the
gradients of it. Each is one pass over its numbers: what it takes is the time of memory."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import ONE, ZERO, norm_factor, rotate, sigmoid
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    inlined,
    own_share,
    run_on_threads,
)


def normalize(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """w x r of x [..., D] and w [D], and r [..., 1] = 1 / sqrt(mean(x^2) + epsilon)."""
    x, size = x.contiguous(), x.shape[-1]
    y, r = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
    _run(_normalizer(size), x.numel() // size, x, weight, torch.tensor([epsilon]), y, r)
    return y, r


def norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, r: Tensor, beside: Tensor | None = None
) -> Tensor:
    """dx [N, D] of `normalize`, to which that of x's other way is added, if there is one."""
    dy, dx, size = dy.contiguous(), torch.empty_like(x), x.shape[-1]
    others = [] if beside is None else [beside.contiguous()]
    function = _norm_gradient(size, beside is not None)
    _run(function, x.numel() // size, dy, x, weight, r, dx, *others)
    return dx


def rotate_heads(
    heads: Tensor,
    rotation: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float] | None,
    num_rotated: int,
) -> tuple[Tensor, Tensor]:
    """The first `num_rotated` of `heads` [N, H, K], normed if they have norms, rotated; and their
    norms' r [N, rotated].

    `rotation` is cos and sin [N, 1, K], this with the sign of the half that it multiplies; `norm`
    weights [rotated, K] and epsilon.
    """
    n, num_heads, dim = heads.shape
    rotated, r = heads.new_empty(n, num_rotated, dim), heads.new_empty(n, num_rotated)
    weight, epsilon = (heads.new_ones(1), 0.0) if norm is None else norm
    cos, sin = (angles.contiguous() for angles in rotation)
    assert cos.shape == sin.shape == (n, 1, dim)
    function = _rotator(num_heads, num_rotated, dim, norm is not None)
    _run(function, n, heads, cos, sin, weight, torch.tensor([epsilon]), rotated, r)
    return rotated, r


def heads_gradient(
    gradients: Sequence[Tensor],
    heads: Tensor,
    rotation: tuple[Tensor, Tensor],
    norm: tuple[Tensor, float] | None,
    r: Tensor,
) -> Tensor:
    """That of `heads` [N, H, K] by those of queries and keys, which `rotate_heads` made of the
    first of them, and of values, the others."""
    n, num_heads, dim = heads.shape
    gradient = torch.empty_like(heads)
    weight = heads.new_ones(1) if norm is None else norm[0]
    cos, sin = (angles.contiguous() for angles in rotation)
    given = [tensor.contiguous() for tensor in gradients]
    num_queries, num_keys, num_values = (tensor.shape[1] for tensor in given)
    assert num_queries + num_keys + num_values == num_heads
    function = _heads_gradient(num_queries, num_keys, num_values, dim, norm is not None)
    _run(function, n, *given, heads, cos, sin, weight, r, gradient)
    return gradient


def gate(y: Tensor) -> Tensor:
    """silu(g) u [N, I] of y [N, 2 I], g beside u."""
    inner = y.new_empty(len(y), y.shape[1] // 2)
    _run(_gate(inner.shape[1]), len(y), y, inner)
    return inner


def gate_gradient(d_inner: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """dg and du [N, I] of `gate`."""
    dg, du = d_inner.new_empty(2, *d_inner.shape)
    _run(_gate_gradient(d_inner.shape[1]), len(y), d_inner.contiguous(), y, dg, du)
    return dg, du


def _run(function: Any, num_rows: int, *tensors: Tensor) -> None:
    run_on_threads(function, torch.get_num_threads(), [num_rows, *map(address, tensors)])


@cache
def _normalizer(size: int) -> Any:
    def normalize_rows(argument):
        numbers = array(argument, 6)
        n = numbers[0]
        x, y = array(floats(numbers[1]), (n, size)), array(floats(numbers[4]), (n, size))
        weight = array(floats(numbers[2]), size)
        epsilon = array(floats(numbers[3]), 1)[0]
        factors = array(floats(numbers[5]), n)
        _, start, stop = own_share(n)
        for row in range(start, stop):
            factor = factors[row] = norm_factor(x[row], epsilon)
            for i in range(size):
                y[row, i] = x[row, i] * factor * weight[i]

    return compile_for_threads(normalize_rows, size)


@cache
def _norm_gradient(size: int, has_other: bool) -> Any:
    def norm_gradient_rows(argument):
        numbers = array(argument, 7)
        n = numbers[0]
        dy, x = array(floats(numbers[1]), (n, size)), array(floats(numbers[2]), (n, size))
        weight, factors = array(floats(numbers[3]), size), array(floats(numbers[4]), n)
        dx = array(floats(numbers[5]), (n, size))
        others = array(floats(numbers[6 if has_other else 5]), (n, size))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            factor, along = factors[row], _along(dy[row], weight, x[row], factors[row])
            for i in range(size):
                own = dy[row, i] * weight[i] * factor - x[row, i] * along
                dx[row, i] = own + others[row, i] if has_other else own

    return compile_for_threads(norm_gradient_rows, size, has_other)


@inlined
def _along(dy, weight, x, factor):
    """How much of x a norm's gradient has less: r^3 (w dy . x) / D."""
    total = ZERO
    for i in range(len(x)):
        total += dy[i] * weight[i] * x[i]
    return total * factor * factor * factor / np.float32(len(x))


@cache
def _rotator(num_heads: int, num_rotated: int, dim: int, has_norm: bool) -> Any:
    def rotate_rows(argument):
        numbers = array(argument, 8)
        n = numbers[0]
        heads = array(floats(numbers[1]), (n, num_heads, dim))
        cos, sin = array(floats(numbers[2]), (n, dim)), array(floats(numbers[3]), (n, dim))
        weight = array(floats(numbers[4]), (num_rotated, dim))
        epsilon = array(floats(numbers[5]), 1)[0]
        rotated = array(floats(numbers[6]), (n, num_rotated, dim))
        factors = array(floats(numbers[7]), (n, num_rotated))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            for h in range(num_rotated):
                x, place = heads[row, h], rotated[row, h]
                factor = norm_factor(x, epsilon) if has_norm else ONE
                rotate(x, factor, weight[h], has_norm, cos[row], sin[row], place)
                factors[row, h] = factor

    return compile_for_threads(rotate_rows, num_heads, num_rotated, dim, has_norm)


@cache
def _heads_gradient(
    num_queries: int, num_keys: int, num_values: int, dim: int, has_norm: bool
) -> Any:
    num_rotated = num_queries + num_keys
    num_heads = num_rotated + num_values

    def heads_gradient_rows(argument):
        numbers = array(argument, 10)
        n = numbers[0]
        d_queries = array(floats(numbers[1]), (n, num_queries, dim))
        d_keys = array(floats(numbers[2]), (n, num_keys, dim))
        d_values = array(floats(numbers[3]), (n, num_values, dim))
        heads = array(floats(numbers[4]), (n, num_heads, dim))
        cos, sin = array(floats(numbers[5]), (n, dim)), array(floats(numbers[6]), (n, dim))
        weight = array(floats(numbers[7]), (num_rotated, dim))
        factors = array(floats(numbers[8]), (n, num_rotated))
        gradient = array(floats(numbers[9]), (n, num_heads, dim))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            for h in range(num_rotated):
                place = gradient[row, h]
                d = d_queries[row, h] if h < num_queries else d_keys[row, h - num_queries]
                _rotate_back(d, cos[row], sin[row], place)
                if has_norm:
                    x, factor = heads[row, h], factors[row, h]
                    along = _along(place, weight[h], x, factor)
                    for i in range(dim):
                        place[i] = place[i] * weight[h, i] * factor - x[i] * along
            for h in range(num_values):
                gradient[row, num_rotated + h] = d_values[row, h]

    shape = num_queries, num_keys, num_values, dim, has_norm
    return compile_for_threads(heads_gradient_rows, *shape)


@inlined
def _rotate_back(d, cos, sin, output):
    half = len(d) // 2
    for i in range(half):
        output[i] = d[i] * cos[i] + d[i + half] * sin[i + half]
        output[i + half] = d[i + half] * cos[i + half] + d[i] * sin[i]


@cache
def _gate(size: int) -> Any:
    def gate_rows(argument):
        numbers = array(argument, 3)
        n = numbers[0]
        y, inner = array(floats(numbers[1]), (n, 2, size)), array(floats(numbers[2]), (n, size))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            for i in range(size):
                inner[row, i] = y[row, 0, i] * sigmoid(y[row, 0, i]) * y[row, 1, i]

    return compile_for_threads(gate_rows, size)


@cache
def _gate_gradient(size: int) -> Any:
    def gate_gradient_rows(argument):
        numbers = array(argument, 5)
        n = numbers[0]
        d_inner, y = array(floats(numbers[1]), (n, size)), array(floats(numbers[2]), (n, 2, size))
        dg, du = array(floats(numbers[3]), (n, size)), array(floats(numbers[4]), (n, size))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            for i in range(size):
                g, d = y[row, 0, i], d_inner[row, i]
                s = sigmoid(g)
                silu = g * s
                du[row, i] = silu * d
                dg[row, i] = d * y[row, 1, i] * (s + silu * (ONE - s))

    return compile_for_threads(gate_gradient_rows, size)
