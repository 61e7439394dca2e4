"""Products with weights, by the library that is the faster one on this machine's CPU."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith.processor import processor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of x [N, I] and W [O, I]; like PyTorch's, but without a gradient."""
    is_float32 = x.device.type == "cpu" and x.dtype == torch.float32
    if is_float32 and _prefers_onednn() and _suits_onednn(weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _suits_onednn(weight: Tensor) -> bool:
    """It refuses an empty one, and multiplies a thousand times slower by one that does not lie in
    one piece, by rows or by columns."""
    return weight.numel() > 0 and (weight.is_contiguous() or weight.t().is_contiguous())


@cache
def _prefers_onednn() -> bool:
    """PyTorch multiplies by MKL where it has it, which knows Intel's CPUs best: on an AMD EPYC
    oneDNN takes a sixth less time, on an Intel Xeon as much or more. Not tried by the clock, since
    the two round differently."""
    is_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_both and "Intel" not in processor()
