"""Products with matrices that are as narrow as adapters' ranks: compiled where that is for them."""

import torch
from torch import Tensor

from tinsmith.backend.compiled import narrow
from tinsmith.backend.compiled.threads import runs_compiled_for
from tinsmith.backend.compiled.tiles import whole_width
from tinsmith.backend.model.products import linear


def width_for(rank: int, device_type: str, dtype: torch.dtype) -> int:
    """How many columns a matrix of so many is to have, those behind them zeros."""
    return whole_width(rank) if runs_compiled_for(device_type, dtype) else rank


def project(x: Tensor, w: Tensor, output: Tensor) -> None:
    """Write x w [N, R] of x [N, I] and w [I, R]."""
    if narrow.can_project(x, w):
        narrow.project(x, w, output)
    else:
        output.copy_(linear(x, w.t()))


def correlate(x: Tensor, z: Tensor) -> Tensor:
    """x^T z [I, R] of x [N, I] and z [N, R]."""
    return narrow.correlate(x, z) if narrow.can_correlate(x, z) else linear(x.t(), z.t())
