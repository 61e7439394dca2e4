"""Products with weights in panels are those of the formula, and each row's its own."""

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from tests.compiled import COMPILED
from tinsmith.backend.compiled import panels
from tinsmith.backend.compiled.tiles import TILE_COLUMNS, TILE_ROWS
from tinsmith.backend.sampling import packed

pytestmark = COMPILED
# One row, fewer than a tile has, a tile, parts of one, and more than one block.
LENGTHS = [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 3, panels.BLOCK_ROWS + TILE_ROWS + 1]
SIZES = [1, 40, 2 * panels.TERMS + 3]


def drawn(num_rows: int, size: int, num_tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, I] and two weights [O, I]."""
    torch.manual_seed(num_rows + size)
    weights = torch.randn(2, num_tiles * TILE_COLUMNS, size) / size**0.5
    return torch.randn(num_rows, size), weights[0], weights[1]


def close_to(found: Tensor, exact: Tensor) -> None:
    """To 1e-5, of numbers of up to 20."""
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 1e-5


@pytest.mark.parametrize("num_tiles", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", LENGTHS)
def test_they_are_those_of_the_formula(num_rows: int, size: int, num_tiles: int):
    x, gate, up = drawn(num_rows, size, num_tiles)
    assert panels.can_pack(*gate.shape)
    gates, ups = panels.pack(gate), panels.pack(up)
    exact_gate, exact_up = (x.double() @ w.double().t() for w in (gate, up))
    close_to(panels.multiply(x, gates), exact_gate)
    close_to(panels.gate(x, gates, ups), nn.functional.silu(exact_gate) * exact_up)


def test_gates_of_any_size_are_as_exact():
    x = torch.linspace(-90, 90, 64)[:, None]
    ones = panels.pack(torch.ones(TILE_COLUMNS, 1))
    exact = nn.functional.silu(x.double()) * x.double()
    found = panels.gate(x, ones, ones)
    assert ((found - exact).abs() <= 1e-6 * exact.abs() + 1e-30).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_rows_numbers_are_its_own_bit_for_bit(size: int):
    x, gate, up = drawn(LENGTHS[-1], size, 3)
    gates, ups = panels.pack(gate), panels.pack(up)
    torch.set_num_threads(2)
    together = panels.multiply(x, gates), panels.gate(x, gates, ups)
    for threads in (1, 5):
        torch.set_num_threads(threads)
        for start, stop in ((0, 1), (5, 5 + TILE_ROWS), (3, len(x))):
            part = x[start:stop]
            assert torch.equal(panels.multiply(part, gates), together[0][start:stop])
            assert torch.equal(panels.gate(part, gates, ups), together[1][start:stop])


@pytest.mark.parametrize("shape", [(TILE_COLUMNS - 1, 5), (0, 5), (TILE_COLUMNS, 0)])
def test_what_does_not_consist_of_panels_is_not_packed(shape: tuple[int, int]):
    assert not panels.can_pack(*shape)


def test_a_layer_whose_weights_do_not_consist_of_panels_is_packed_otherwise():
    assert packed._packing(TILE_COLUMNS - 1, 5) != "panels"


@pytest.mark.parametrize("activation", [SiLUActivation, GELUTanh])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("packing", ["panels", "onednn", "mkl", "none"])
def test_whoever_packs_a_layer_computes_it(
    packing: str, has_bias: bool, activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if packing == "mkl" and not torch.backends.mkl.is_available():
        pytest.skip("this PyTorch has no MKL")
    monkeypatch.setattr(packed, "_packing", lambda *_: packing)
    torch.manual_seed(0)
    size, inner = 48, 3 * TILE_COLUMNS
    shapes = [(inner, size), (inner, size), (TILE_COLUMNS, inner)]
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.randn(len(weight)) if has_bias else None for weight in weights]
    gate, up, down = zip(weights, biases, strict=True)
    layer = packed.gated_layer(gate, up, down, activation)
    is_gated_by_panels = activation is SiLUActivation and packing == "panels" and not has_bias
    assert isinstance(layer, packed._PanelGatedLayer) == is_gated_by_panels
    x = torch.randn(3, 2, size)

    def exact(x: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
        bias = None if pair[1] is None else pair[1].double()
        return nn.functional.linear(x, pair[0].double(), bias)

    wide = x.double()
    expected = exact(activation()(exact(wide, gate)) * exact(wide, up), down)
    close_to(layer(x), expected)
    close_to(layer(x[1, 1]), expected[1, 1])
