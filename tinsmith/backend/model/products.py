"""Products with weights, by the library that is the faster one on this machine's CPU."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith.processor import processor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of x [N, I] and W [O, I]; like PyTorch's, but without a gradient."""
    if weight.is_mkldnn or suits_onednn(weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def packed(weight: Tensor) -> Tensor:
    """W [O, I] as `linear` takes least time for it, many times: a copy in oneDNN's own order, where
    that is who multiplies, else W itself."""
    is_packed = suits_onednn(weight)
    return torch.ops.mkldnn._reorder_linear_weight(weight, None) if is_packed else weight


def suits_onednn(weight: Tensor) -> bool:
    """Whether it multiplies by a weight, and packs it. It refuses an empty one, and takes a
    thousand times as long where one does not lie in one piece, by rows or by columns."""
    is_float32 = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not is_float32 or not _prefers_onednn() or not weight.numel():
        return False
    return weight.is_contiguous() or weight.t().is_contiguous()


@cache
def _prefers_onednn() -> bool:
    """PyTorch multiplies by MKL where it has it, which knows Intel's CPUs best: on an AMD EPYC
    oneDNN takes a sixth less time, on an Intel Xeon as much or more. Not tried by the clock, since
    the two round differently."""
    is_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_both and "Intel" not in processor()
