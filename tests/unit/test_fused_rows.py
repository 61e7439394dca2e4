"""Compiled norms and heads are those of the formulas, and a row's numbers are its own."""

from collections.abc import Iterator

import pytest
import torch

from tinsmith.backend.sampling.compiled import compile_for_threads, openmp
from tinsmith.backend.sampling.fused_rows import normalize, place_heads

pytestmark = pytest.mark.skipif(
    openmp() is None, reason="this PyTorch's OpenMP library is not libgomp"
)
QUERIES, KEYS, DIM, PLACES = 6, 2, 10, 9
LENGTHS = [1, 9, 4]
EPSILON = 1e-3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1, 64), (7, 1, 512), (1, 33, 40)])
def test_norms_are_those_of_the_formula_and_a_rows_own(shape: tuple[int, ...]):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    torch.set_num_threads(2)
    output = normalize(x, weight, EPSILON)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight
    assert torch.allclose(output.double(), exact, rtol=1e-6, atol=1e-7)
    torch.set_num_threads(1)
    for row, own in zip(x.flatten(0, 1), output.flatten(0, 1), strict=True):
        assert torch.equal(normalize(row[None], weight, EPSILON)[0], own)


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
