"""Attention over packed sequences: a token attends to its own sequence alone."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinsmith.backend.model import families
from tinsmith.backend.model.compiled_attention import AttendCompiled, takes
from tinsmith.backend.model.parts import Part

ATTENTION = "tinsmith_packed"
# Where attention is not compiled (compiled_attention.py). PyTorch's on a CPU is made for long
# sequences: from so many queries on it takes them in blocks that are large enough. Fewer are faster
# by plain products, half the time of both passes, as long as their scores, which are kept, are few.
MIN_FLASH_QUERIES = 192
MAX_SCORED_KEYS = 512


def use_packed_attention(module: PreTrainedModel) -> None:
    """Let a module tree take `parts` as a keyword of its forward; without, it attends as ever."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    module.set_attn_implementation(ATTENTION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    parts: Sequence[Part] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' interface wants it: [1, H, N, K] in, [1, N, H, K] out."""
    if parts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    window = families.sliding_window(module) if sliding_window is None else sliding_window
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend_parts(query, key, value, parts, scaling, window)[None], None


def attend_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: Sequence[Part],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Queries [N, H, K] of all parts, which lie behind each other, and keys and values [N, G, K]
    of G heads in; [N, H, K] out."""
    if query.device.type == "cpu" and query.dtype.itemsize >= torch.float32.itemsize:
        function = AttendCompiled if takes(query, key, value) else _AttendOnCpu
        attended = function.apply(query, key, value, parts, scaling, window)
        assert isinstance(attended, Tensor)
        return attended
    # Split at once, so that their gradients are put together in one pass.
    sizes = [part.num_queries for part in parts]
    queries, keys, values = (tensor.split(sizes) for tensor in (query, key, value))
    numbers = {part.own.start: i for i, part in enumerate(parts)}
    outputs = []
    for i, part in enumerate(parts):
        seen = [numbers[part.prompt.start], i] if part.first_position else [i]
        k, v = (torch.cat([tensors[j] for j in seen]) for tensors in (keys, values))
        outputs.append(_attend_part(queries[i], k, v, part, scaling, window))
    return torch.cat(outputs)


def _attend_part(
    query: Tensor, key: Tensor, value: Tensor, part: Part, scaling: float, window: int | None
) -> Tensor:
    q, k, v = _heads_first(query, key, value)
    options = _options(part, window, scaling, query)
    return F.scaled_dot_product_attention(q, k, v, **options, enable_gqa=True)[0].transpose(0, 1)


class _AttendOnCpu(torch.autograd.Function):
    """Each part by the faster of two ways; its result and gradients go where they belong at once,
    which autograd would do with a pass over all tokens for each part."""

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
        kept = []
        for part in parts:
            q, k, v = query[part.own], _seen(key, part), _seen(value, part)
            if _is_short(part):
                probabilities = _probabilities(q, k, part, scaling, window)
                output[part.own] = _from_groups(probabilities @ v.transpose(0, 1), q.shape)
                kept.append(probabilities)
            else:
                own, normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    *_heads_first(q, k, v), 0.0, **_options(part, window, scaling, q)
                )
                output[part.own] = own[0].transpose(0, 1)
                kept.append(normalizer)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.settings = parts, scaling, window
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_output,) = gradients
        query, key, value, output, *kept = ctx.saved_tensors
        parts, scaling, window = ctx.settings
        d_query = torch.empty_like(output)
        d_key, d_value = (d_query.new_empty(key.shape) for _ in range(2))
        for part, keeping in zip(parts, kept, strict=True):
            q, k, v = query[part.own], _seen(key, part), _seen(value, part)
            do = d_output[part.own]
            if _is_short(part):
                dq, dk, dv = _short_backward(do, q, k, v, keeping, scaling)
            else:
                found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    *_heads_first(do, q, k, v, output[part.own]),
                    keeping,
                    0.0,
                    **_options(part, window, scaling, q),
                )
                dq, dk, dv = (gradient[0].transpose(0, 1) for gradient in found)
            d_query[part.own] = dq
            for gradient, own in ((d_key, dk), (d_value, dv)):
                gradient[part.own] = own[part.first_position :]
                if part.first_position:  # which lies before it, and so has its own already
                    gradient[part.prompt] += own[: part.first_position]
        return d_query, d_key, d_value, None, None, None


def _is_short(part: Part) -> bool:
    return part.num_queries < MIN_FLASH_QUERIES and part.num_keys <= MAX_SCORED_KEYS


def num_scores(part: Part) -> int:
    """How many scores a head keeps of a part for its backward pass on a CPU, if it is not
    compiled."""
    return part.num_queries * part.num_keys if _is_short(part) else 0


def _seen(tensor: Tensor, part: Part) -> Tensor:
    if not part.first_position:
        return tensor[part.own]
    return torch.cat([tensor[part.prompt], tensor[part.own]])


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """[T, H, K] as [1, H, T, K] whose last dimension lies in one piece, which PyTorch's operators
    do not check."""
    heads = [tensor.transpose(0, 1)[None] for tensor in tensors]
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in heads]


def _in_groups(tensor_THK: Tensor, num_groups: int) -> Tensor:
    """[T, H, K] of H heads that share the keys of G as [G, H / G T, K]."""
    grouped = tensor_THK.unflatten(1, (num_groups, -1)).permute(1, 2, 0, 3)
    return grouped.reshape(num_groups, -1, tensor_THK.shape[-1])


def _from_groups(tensor: Tensor, shape: torch.Size) -> Tensor:
    """[G, H / G T, K] as [T, H, K], the shape."""
    grouped = tensor.view(tensor.shape[0], -1, shape[0], shape[2])
    return grouped.permute(2, 0, 1, 3).reshape(shape)


def _probabilities(q: Tensor, k: Tensor, part: Part, scaling: float, window: int | None) -> Tensor:
    """softmax(s q k^T) [G, H / G T, S] where a query may see."""
    grouped = _in_groups(q, k.shape[1])
    scores = torch.bmm(grouped, k.permute(1, 2, 0)).mul_(scaling)
    scores.unflatten(1, (-1, part.num_queries)).add_(_mask(part, window, q.dtype))
    return torch.softmax(scores, -1)


def _short_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With o = p v and p = softmax(s q k^T): dv = p^T do, dp = do v^T, and with
    ds = s p (dp - sum(p dp)): dq = ds k, dk = ds^T q."""
    do_groups, q_groups = (_in_groups(tensor, k.shape[1]) for tensor in (do, q))
    dv = torch.bmm(p.transpose(1, 2), do_groups)
    dp = torch.bmm(do_groups, v.permute(1, 2, 0))
    ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scaling)
    dq = _from_groups(torch.bmm(ds, k.transpose(0, 1)), q.shape)
    dk = torch.bmm(ds.transpose(1, 2), q_groups)
    return dq, dk.transpose(0, 1), dv.transpose(0, 1)


def _options(part: Part, window: int | None, scaling: float, query: Tensor) -> dict[str, Any]:
    """Which tokens may see which, as PyTorch's attention is told. Without a prompt or a window that
    is too short each sees itself and all before it, which needs no mask."""
    is_causal = not part.first_position and (window is None or window >= part.num_keys)
    mask = None if is_causal else _mask(part, window, query.dtype).to(query.device)
    return {"is_causal": is_causal, "attn_mask": mask, "scale": scaling}


def _mask(part: Part, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores: -inf where one of the last tokens may not see one of all."""
    if _is_short(part):
        return _kept_mask(part.num_queries, part.num_keys, window, dtype)
    return _made_mask(part.num_queries, part.num_keys, window, dtype)


def _made_mask(num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    # Not a tensor of inference, where it is made there first: training may take it from the cache.
    with torch.inference_mode(False):
        nothing = torch.full((num_queries, num_keys), -torch.inf, dtype=dtype)
        before = num_keys - num_queries
        mask = nothing.triu(before + 1)
        return mask if window is None else mask.add_(nothing.tril_(before - window))


# One for each short part of a micro-batch, as all layers want them; of 0.4 MB at most.
_kept_mask = lru_cache(maxsize=64)(_made_mask)
