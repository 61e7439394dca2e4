"""Products of whichever library is chosen are x W^T + b, of every layout that training has."""

from collections.abc import Iterator

import pytest
import torch

from tinsmith.backend.model import products
from tinsmith.backend.model.products import linear

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
    ):
        exact = x.double() @ w.double().t() + (0 if b is None else b.double())
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert torch.allclose(linear(x, w, b).double(), exact, rtol=0, atol=tolerance)
