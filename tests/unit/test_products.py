"""Products of whichever library is chosen are x W^T + b, of every layout that training has."""

from collections.abc import Iterator

import pytest
import torch

from tinsmith.backend.model import products
from tinsmith.backend.model.products import linear, packed

LIBRARIES = {"Intel(R) Xeon(R)": "mkl", "AMD EPYC": "onednn"}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(products, "processor", lambda: request.param)
    products._prefers_onednn.cache_clear()
    yield LIBRARIES[request.param]
    products._prefers_onednn.cache_clear()


@pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="this PyTorch has not both libraries",
)
def test_the_library_goes_by_the_processor(library: str):
    assert products._prefers_onednn() == (library == "onednn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_rows", [0, 1, 37])
def test_products_are_those_of_the_formula(library: str, dtype: torch.dtype, num_rows: int):
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 50, dtype=dtype), torch.randn(24, dtype=dtype)
    wide = torch.randn(num_rows, 60, dtype=dtype)
    for x, w, b in (
        (wide[:, :50].contiguous(), weight, bias),
        (wide[:, 5:55], weight, None),
        (wide[:, 3:27], weight.t(), None),
        (torch.randn(50, num_rows, dtype=dtype).t(), weight, bias),
        (weight[:9], wide[:, 5:55], None),
        (weight[:9, :num_rows].contiguous(), wide[:, 5:55].t(), None),
    ):
        exact = x.double() @ w.double().t() + (0 if b is None else b.double())
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert torch.allclose(linear(x, w, b).double(), exact, rtol=0, atol=tolerance)


def test_onednn_is_not_asked_where_a_weight_is_a_part_of_rows(
    library: str, monkeypatch: pytest.MonkeyPatch
):
    """Such products it does without its kernels, in seconds for milliseconds."""
    monkeypatch.setattr(products.torch.ops.mkldnn, "_linear_pointwise", lambda *_: "onednn")
    x, wide = torch.ones(3, 4), torch.ones(5, 9)
    for weight in (torch.ones(5, 4), torch.ones(4, 5).t()):
        assert isinstance(linear(x, weight), str) == (library == "onednn")
    for part in (wide[:, :4], torch.ones(9, 9)[:4, :5].t()):
        assert linear(x, part).tolist() == [[4.0] * 5] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_rows", [0, 1, 37])
def test_products_of_packed_weights_are_those_of_the_formula(
    library: str, dtype: torch.dtype, num_rows: int
):
    """Where oneDNN is not the one that multiplies, they are the weights themselves."""
    torch.manual_seed(0)
    x, bias = torch.randn(num_rows, 50, dtype=dtype), torch.randn(24, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for weight in (torch.randn(24, 50, dtype=dtype), torch.randn(50, 24, dtype=dtype).t()):
        once = packed(weight)
        assert once.is_mkldnn == (library == "onednn" and dtype == torch.float32)
        for b in (None, bias):
            exact = x.double() @ weight.double().t() + (0 if b is None else b.double())
            assert torch.allclose(linear(x, once, b).double(), exact, rtol=0, atol=tolerance)
    part = torch.randn(24, 60, dtype=dtype)[:, :50]
    assert packed(part) is part
    assert linear(x, packed(part[:0])).shape == (num_rows, 0)
