"""Compiled passes and their gradients are those of the formulas, a row's numbers its own."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import COMPILED
from tinsmith.backend.compiled import passes
from tinsmith.backend.compiled.threads import compile_for_threads
from tinsmith.backend.sampling.heads import place_heads

pytestmark = COMPILED
QUERIES, KEYS, DIM, PLACES = 6, 2, 10, 9
LENGTHS = [1, 9, 4]
EPSILON = 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 64), (7, 1, 512), (1, 33, 40)])
def test_norms_are_those_of_the_formula_and_a_rows_own(shape: tuple[int, ...]):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    torch.set_num_threads(2)
    output, factors = passes.normalize(x, weight, EPSILON)
    exact_factors = (x.double().pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt()
    assert torch.allclose(factors.double(), exact_factors, rtol=1e-6, atol=0)
    assert_near(output, x.double() * exact_factors * weight)
    torch.set_num_threads(1)
    for row, own in zip(x.flatten(0, 1), output.flatten(0, 1), strict=True):
        assert torch.equal(passes.normalize(row[None], weight, EPSILON)[0][0], own)


@pytest.mark.parametrize("has_other", [True, False])
def test_the_gradient_of_a_norm_is_that_of_autograd(has_other: bool):
    x, dy, other = drawn_rows(9, 40, 3)
    weight = torch.randn(40)

    def formula(x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * weight

    def gradient(x: Tensor, dy: Tensor, other: Tensor) -> Tensor:
        r = passes.normalize(x, weight, EPSILON)[1]
        return passes.norm_gradient(dy, x, weight, r, other if has_other else None)

    exact = exact_gradient(formula, x, dy) + (other.double() if has_other else 0)
    assert_each_rows_own(gradient, (x, dy, other), exact)


@pytest.mark.parametrize("has_norm", [True, False])
def test_heads_and_their_gradient_are_those_of_autograd(has_norm: bool):
    heads, rotation, norm = drawn(has_norm)
    rotation = [angles[:, None] for angles in rotation]
    num_rotated = QUERIES + KEYS
    gradients = torch.randn(heads.shape).split([QUERIES, KEYS, KEYS], 1)

    def formula(heads: Tensor) -> Tensor:
        cos, signed_sin = (angles.double() for angles in rotation)
        x = heads[:, :num_rotated]
        if norm is not None:
            x = x * (x.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * norm[0]
        swapped = torch.cat([x[..., DIM // 2 :], x[..., : DIM // 2]], -1)
        return torch.cat([x * cos + swapped * signed_sin, heads[:, num_rotated:]], 1)

    def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return passes.rotate_heads(heads, (cos, sin), norm, num_rotated)[0]

    def gradient(heads: Tensor, cos: Tensor, sin: Tensor, *gradients: Tensor) -> Tensor:
        r = passes.rotate_heads(heads, (cos, sin), norm, num_rotated)[1]
        return passes.heads_gradient(gradients, heads, (cos, sin), norm, r)

    exact = formula(heads.double())
    assert_each_rows_own(rotated, (heads, *rotation), exact[:, :num_rotated])
    exact = exact_gradient(formula, heads, torch.cat(gradients, 1))
    assert_each_rows_own(gradient, (heads, *rotation, *gradients), exact)


def test_the_gated_layers_inner_and_its_gradient_are_those_of_autograd():
    """Also where e^x would be none, or no more than a denormal number."""
    y, dy = drawn_rows(5, 2 * 24, 2)
    y[0, :6] = torch.tensor([100.0, -100.0, 88.0, -88.0, 0.0, 1e-30])
    d_inner = dy[:, :24]

    def formula(y: Tensor) -> Tensor:
        gate, up = y.chunk(2, 1)
        return F.silu(gate) * up

    def gate_gradient(d_inner: Tensor, y: Tensor) -> Tensor:
        return torch.cat(passes.gate_gradient(d_inner, y), 1)

    assert_each_rows_own(passes.gate, (y,), formula(y.double()))
    exact = exact_gradient(formula, y, d_inner)
    assert_each_rows_own(gate_gradient, (d_inner, y), exact)
    y[1, 3] = torch.nan
    assert passes.gate(y)[1, 3].isnan(), "what is no number stays none"


def drawn_rows(n: int, size: int, count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(count, n, size))


def exact_gradient(formula: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    exact = x.double().requires_grad_()
    return torch.autograd.grad(formula(exact), exact, dy.double())[0]


def assert_each_rows_own(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], exact: Tensor
) -> None:
    """Near the exact numbers, and bit for bit those of each row alone, on one thread."""
    torch.set_num_threads(2)
    found = function(*tensors)
    assert_near(found, exact)
    torch.set_num_threads(1)
    for row in range(len(found)):
        assert torch.equal(function(*(tensor[row : row + 1] for tensor in tensors))[0], found[row])


def assert_near(found: Tensor, exact: Tensor) -> None:
    assert torch.allclose(found.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("has_norm", [True, False])
def test_heads_are_normed_rotated_and_placed_as_the_formula_says(has_norm: bool):
    heads, rotation, norm = drawn(has_norm)
    keys, values = torch.zeros(2, len(LENGTHS), KEYS, PLACES, DIM)
    query = place_heads(heads, rotation, norm, keys, values, rows_of(LENGTHS))
    exact = heads[:, : QUERIES + KEYS].double()
    if norm is not None:
        exact = exact / (exact.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * norm[0]
    cos, signed_sin = (angles.double()[:, None] for angles in rotation)
    swapped = torch.cat([exact[..., DIM // 2 :], exact[..., : DIM // 2]], -1)
    exact = exact * cos + swapped * signed_sin
    assert torch.allclose(query[:, :, 0].double(), exact[:, :QUERIES], rtol=0, atol=2e-6)
    for row, length in enumerate(LENGTHS):
        last = length - 1
        found = keys[row, :, last].double()
        assert torch.allclose(found, exact[row, QUERIES:], rtol=0, atol=2e-6)
        assert torch.equal(values[row, :, last], heads[row, QUERIES + KEYS :])
        for tensor in (keys, values):
            tensor[row, :, last] = 0
    assert not keys.any(), "nothing but the new places was written"
    assert not values.any()


def test_neither_other_rows_nor_threads_change_a_bit_of_a_rows_heads():
    heads, rotation, norm = drawn(True)
    torch.set_num_threads(2)
    keys, values = torch.zeros(2, len(LENGTHS), KEYS, PLACES, DIM)
    together = place_heads(heads, rotation, norm, keys, values, rows_of(LENGTHS))
    torch.set_num_threads(1)
    for row, length in enumerate(LENGTHS):
        own = slice(row, row + 1)
        k, v = torch.zeros(2, 1, KEYS, length, DIM)
        cos, sin = (angles[own] for angles in rotation)
        alone = place_heads(heads[own], (cos, sin), norm, k, v, rows_of([length]))
        assert torch.equal(alone, together[own])
        assert torch.equal(k, keys[own, :, :length])


def test_what_is_compiled_for_a_shape_is_kept_apart_from_that_for_others():
    """Or of two processes that write at once, one could run what is made for the other's shape."""
    compiled = [compile_for_threads(_nothing, size) for size in (24, 56)]
    kept = [one._cache.cache_path for one in compiled]
    names = [one._cache._impl.filename_base for one in compiled]
    assert kept[0] == kept[1]
    assert ["-24-" in names[0], "-56-" in names[1]] == [True, True]


def _nothing(argument: object) -> None:
    return


def drawn(has_norm: bool):
    torch.manual_seed(0)
    heads = torch.randn(len(LENGTHS), QUERIES + 2 * KEYS, DIM)
    cos, signed_sin = torch.randn(2, len(LENGTHS), DIM)
    norm = (torch.randn(QUERIES + KEYS, DIM), EPSILON) if has_norm else None
    return heads, (cos, signed_sin), norm


def rows_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[row, 0, length] for row, length in enumerate(lengths)])
