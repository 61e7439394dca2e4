"""Attention over packed sequences by compiled functions, with gradients by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinsmith.backend.compiled import attention
from tinsmith.backend.compiled.threads import runs_compiled, runs_compiled_for
from tinsmith.backend.model.parts import Part


def takes(*heads: Tensor) -> bool:
    """Whether queries, keys and values [N, heads, K] are such as these functions are for."""
    return all(runs_compiled(tensor) and attention.fits(tensor) for tensor in heads)


def is_for(device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a model's will be."""
    return runs_compiled_for(device_type, dtype) and attention.fits_dim(head_dim)


class AttendCompiled(torch.autograd.Function):
    """[N, H, K] of queries [N, H, K] of all parts, keys and values [N, G, K]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parts: Sequence[Part],
        scaling: float,
        window: int | None,
    ) -> Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        ctx.settings = *_tables(parts), scaling, window
        normalizers = attention.attend(attention.Heads(query, key, value, *ctx.settings), output)
        ctx.save_for_backward(query, key, value, output, normalizers)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normalizers = ctx.saved_tensors
        heads = attention.Heads(query, key, value, *ctx.settings)
        found = [output.new_empty(tensor.shape) for tensor in (query, key, value)]
        attention.attend_gradient(gradients[0].contiguous(), heads, output, normalizers, found)
        return *found, None, None, None


def _tables(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Where each part and its prompt begin and end, and the numbers of those without a prompt,
    which lie before all that go on from them."""
    rows, firsts = [], []
    for i, part in enumerate(parts):
        own, prompt = part.own, part.prompt
        if not part.first_position:
            firsts.append(i)
        else:
            before = parts[firsts[-1]].own
            assert before.start <= prompt.start <= prompt.stop <= before.stop
        rows.append((own.start, own.stop, prompt.start, prompt.stop))
    return torch.tensor(rows), torch.tensor([*firsts, len(parts)])
