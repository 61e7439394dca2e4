"""Compiled attention of packed sequences is softmax(s q k^T) v; its gradients are autograd's."""

import math
from collections.abc import Sequence
from typing import Any

import numba
import pytest
import torch
from numba import types
from torch import Tensor

from tests.compiled import COMPILED
from tinsmith.backend.compiled import attention, tiles
from tinsmith.backend.compiled.threads import REORDERING, array, run_on_threads
from tinsmith.backend.model import compiled_attention
from tinsmith.backend.model.packed_attention import Part, attend_parts

pytestmark = COMPILED
NONE = slice(0, 0)
SCALING = 0.3
# Of one token, of blocks and tiles and one more or less, and none.
ALONE = [1, 15, 16, 17, 0, 31, 32, 33, 65, 130]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each call of the compiled function was for."""
    asked: list[int] = []

    def attend(heads: attention.Heads, output: Tensor, plain: Any = attention.attend) -> Tensor:
        asked.append(len(heads.parts))
        return plain(heads, output)

    monkeypatch.setattr(compiled_attention.attention, "attend", attend)
    return asked


def parts_of(lengths: Sequence[int], prompts: Sequence[tuple[int, Sequence[int]]]) -> list[Part]:
    """Sequences behind each other, then prompts with what goes on from each."""
    parts, end = [], 0

    def append(length: int, prompt: slice) -> slice:
        nonlocal end
        parts.append(Part(slice(end, end + length), prompt))
        end += length
        return parts[-1].own

    for length in lengths:
        append(length, NONE)
    for length, others in prompts:
        prompt = append(length, NONE)
        for other in others:
            append(other, prompt)
    return parts


def drawn(num_tokens: int, heads: tuple[int, int], dim: int) -> list[Tensor]:
    """Queries and keys that lie in one tensor, and values in another."""
    torch.manual_seed(0)
    rotated = torch.randn(num_tokens, sum(heads), dim)
    value = torch.randn(num_tokens, heads[1] + 3, dim)[:, 3:]
    return [tensor.requires_grad_() for tensor in (*rotated.split(heads, 1), value)]


def attended(tensors: Sequence[Tensor], parts: Sequence[Part], window: int | None) -> Tensor:
    query, key, value = tensors
    return attend_parts(query, key, value, parts, SCALING, window)


def by_hand(tensors: Sequence[Tensor], parts: Sequence[Part], window: int | None) -> Tensor:
    """In float64, a part and a head at a time."""
    query, key, value = (tensor.double() for tensor in tensors)
    output = torch.zeros_like(query)
    sharing = query.shape[1] // key.shape[1]
    for part in parts:
        seen = [*range(part.prompt.start, part.prompt.stop), *range(part.own.start, part.own.stop)]
        row = torch.arange(part.num_queries)[:, None] + part.first_position
        column = torch.arange(len(seen))
        hidden = (column > row) | (column <= row - (window or math.inf))
        for h in range(query.shape[1]):
            scores = SCALING * query[part.own, h] @ key[seen, h // sharing].T
            shares = scores.masked_fill(hidden, -math.inf).softmax(-1)
            output[part.own, h] = shares @ value[seen, h // sharing]
    return output


def gradients(output: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(output, tensors, torch.randn(output.shape).to(output.dtype))


@pytest.mark.parametrize("window", [None, 1, 20, 64])
@pytest.mark.parametrize(("heads", "dim"), [((4, 2), 64), ((3, 3), 32), ((4, 1), 96)])
def test_the_compiled_result_and_gradients_are_those_of_the_formula(
    compiled: list[int], heads: tuple[int, int], dim: int, window: int | None
) -> None:
    parts = parts_of(ALONE, [(40, (30, 1, 16)), (16, (16,)), (1, (50, 2))])
    tensors = drawn(parts[-1].own.stop, heads, dim)
    found = attended(tensors, parts, window)
    assert compiled == [len(parts)]
    exact = by_hand(tensors, parts, window)
    assert torch.allclose(found.double(), exact, rtol=0, atol=4e-6)
    for own, reference in zip(gradients(found, tensors), gradients(exact, tensors), strict=True):
        assert torch.allclose(own, reference, rtol=0, atol=2e-5)


def test_large_scores_neither_overflow_nor_vanish(compiled: list[int]) -> None:
    parts = parts_of([40], [])
    query, key, value = drawn(40, (2, 2), 32)
    tensors = [(query * 30).detach().requires_grad_(), key, value]
    found = attended(tensors, parts, None)
    assert compiled == [1]
    assert torch.allclose(found.double(), by_hand(tensors, parts, None), rtol=0, atol=2e-4)
    assert all(gradient.isfinite().all() for gradient in gradients(found, tensors))


def test_a_number_that_is_none_stays_none_and_in_its_own_sequence(compiled: list[int]) -> None:
    parts = parts_of([20, 20], [])
    tensors = drawn(40, (2, 1), 32)
    with torch.no_grad():
        tensors[0][25, 1, 3] = math.nan
    found = attended(tensors, parts, None)
    assert compiled == [2]
    assert found[25, 1].isnan().all()
    assert found[:25].isfinite().all()


def test_no_number_depends_on_threads_or_on_the_parts_beside_it(compiled: list[int]) -> None:
    """Bit for bit, the gradients too: what parts add to a prompt they add in their order."""
    clusters = [(40, (30, 1, 16)), (50, (20,)), (33, ())]
    parts = parts_of([], clusters)
    tensors = drawn(parts[-1].own.stop, (4, 2), 64)
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found = attended(tensors, parts, None)
        results.append([found, *gradients(found, tensors)])
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))
    alone = parts_of([], clusters[:1])
    size = alone[-1].own.stop
    own = [tensor[:size].detach() for tensor in tensors]
    assert torch.equal(attended(own, alone, None), results[0][0][:size])
    assert compiled == [len(parts)] * 3 + [len(alone)]


def test_long_parts_are_compiled_too_and_narrow_heads_are_not(compiled: list[int]) -> None:
    parts = parts_of([600], [(300, (20, 250))])
    tensors = drawn(parts[-1].own.stop, (2, 1), 32)
    found = attended(tensors, parts, None)
    assert compiled == [4]
    exact = by_hand(tensors, parts, None)
    assert torch.allclose(found.double(), exact, rtol=0, atol=4e-6)
    for own, reference in zip(gradients(found, tensors), gradients(exact, tensors), strict=True):
        assert torch.allclose(own, reference, rtol=0, atol=2e-5)
    narrow = drawn(600, (2, 1), tiles.TILE_COLUMNS // 2)
    exact = by_hand(narrow, parts[:1], None)
    assert torch.allclose(attended(narrow, parts[:1], None).double(), exact, rtol=0, atol=4e-6)
    assert compiled == [4]


def test_heads_that_do_not_lie_behind_each_other_go_another_way(compiled: list[int]) -> None:
    """Of one token, whose rows are no distance apart or any."""
    parts = parts_of([1], [])
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, 1, 32)[0].transpose(0, 1) for heads in (6, 3, 3)]
    one = [torch.randn(1, heads, 32).expand(1, heads, 32) for heads in (6, 3, 3)]
    for given in (tensors, one):
        found = attended(given, parts, None)
        assert torch.allclose(found.double(), by_hand(given, parts, None), rtol=0, atol=1e-6)
    many = [torch.randn(1, heads, 32).expand(20, heads, 32) for heads in (6, 3, 3)]
    parts = parts_of([20], [])
    found = attended(many, parts, None)
    assert torch.allclose(found.double(), by_hand(many, parts, None), rtol=0, atol=4e-6)
    assert len(compiled) <= 1, "at most what lies behind each other"


@pytest.mark.parametrize("adds", [False, True])
def test_tiles_multiply_what_lies_apart_and_across(adds: bool) -> None:
    rows, columns, depth = 2 * tiles.TILE_ROWS, 2 * tiles.TILE_COLUMNS, 5
    product = tiles.add_product if adds else tiles.multiply

    def multiply(argument: Any) -> None:
        n = array(argument, 10)
        product(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9])

    function = numba.cfunc(types.void(types.CPointer(types.int64)), **REORDERING)(multiply)
    torch.manual_seed(0)
    a, b = torch.randn(depth, rows + 3), torch.randn(depth, columns + 7)
    c = torch.randn(rows, columns + 1)
    before = c.clone()
    strides = c.stride(0), a.data_ptr(), a.stride(1), a.stride(0), b.data_ptr(), b.stride(0)
    run_on_threads(function, 1, [c.data_ptr(), *strides, rows, columns, depth])
    exact = a[:, :rows].double().T @ b[:, :columns].double()
    exact += before[:, :columns] if adds else 0
    assert torch.allclose(c[:, :columns].double(), exact, rtol=0, atol=1e-5)
    assert torch.equal(c[:, columns:], before[:, columns:])
