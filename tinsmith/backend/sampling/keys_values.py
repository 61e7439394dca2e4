"""Keys and values of running sequences, and the attention over them.

The model's own attention modules call `update` and then the attention function registered here,
so that any transformers model with plain attention layers samples through it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tinsmith.backend.model import families
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.backend.sampling.memory import key_value_heads
from tinsmith.backend.sampling.prompt_keys_values import LENGTH_STEP, PromptKeysValues, round_up

ATTENTION = "tinsmith_keys_values"
BLOCK = 64  # capacities grow in blocks, so that few sizes ever exist
# So many keys PyTorch hands to the math library at a time.
PART = 512
# Keys that attention reads in vain rather than be called once more.
CALL_KEYS = {"cpu": 256, "cuda": 1 << 14}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    keys_values: "PromptKeysValues | RunningKeysValues | None" = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' interface wants it: [B, H, T, D] in, [B, T, H, D] out."""
    assert keys_values is not None
    assert attention_mask is None
    window = families.sliding_window(module) if sliding_window is None else sliding_window
    output = keys_values.attend(query, key, value, scaling, window)
    return output.transpose(1, 2), None


def use_keys_values(module: PreTrainedModel) -> None:
    """Make a module tree attend through `keys_values`, passed as a keyword to its forward."""
    AttentionInterface.register(ATTENTION, attend)
    module.set_attn_implementation(ATTENTION)


class RunningKeysValues:
    """Of the running rows: preallocated, row i of the batch in slot i, each at its own length."""

    def __init__(
        self, device: torch.device, max_tokens: int, num_sharing: int, head_dim: int
    ) -> None:
        """More than `max_tokens` (slots x capacity) are held only where the rows need them.
        `num_sharing` heads of queries share one of keys."""
        self._device = device
        self._longest_unsplit = PART
        if device.type == "cpu":
            self._longest_unsplit = longest_unsplit(num_sharing, head_dim)
        self._max_tokens = max_tokens
        self._longest = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_slots = 0
        self._capacity = 0
        self._lengths = torch.zeros(0, dtype=torch.long, device=device)
        self._view_length = 0
        self._views: list[tuple[slice, int]] = []
        self._bias: Tensor | None = None

    def get_seq_length(self, *_: Any) -> int:
        return self._view_length

    def admit(self, slots: Sequence[int], prompt: PromptKeysValues, row: int, length: int) -> None:
        """Copy the keys and values of a prompt of `length` tokens into each of `slots`."""
        self._longest = max(self._longest, length + 1)
        self._grow(prompt, max(slots) + 1)
        where = torch.tensor(slots, device=self._device)
        for layer, keys, values in prompt.of(row):
            mine_k, mine_v = self._layers[layer]
            mine_k[where, :, :length] = keys.transpose(0, 1)
            mine_v[where, :, :length] = values.transpose(0, 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot, so that the running rows stay the first ones."""
        for keys, values in self._layers.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def begin_step(self, lengths: Sequence[int]) -> Tensor:
        """Prepare one decode step of rows with `lengths` tokens; returns positions [n, 1]."""
        needed = [self._keys_looked_at(length + 1) for length in lengths]
        self._views = _views(needed, CALL_KEYS[self._device.type])
        longest = self._longest = self._view_length = max(needed)
        self._reserve(len(lengths))
        self._lengths = torch.tensor(lengths, device=self._device)
        position = torch.arange(longest, device=self._device)
        self._distance = self._lengths[:, None] - position
        self._bias = torch.zeros(self._distance.shape, device=self._device)
        self._bias.masked_fill_(self._distance < 0, float("-inf"))
        self._slots = torch.arange(len(lengths), device=self._device)
        return self._lengths[:, None]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer]
        keys[self._slots, :, self._lengths] = key[:, :, 0]
        values[self._slots, :, self._lengths] = value[:, :, 0]
        n, longest = len(self._slots), self._view_length
        return keys[:n, :, :longest], values[:n, :, :longest]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """One query token a row; the heads that share a key are attended as query positions."""
        n, heads, _, dim = query.shape
        assert self._bias is not None
        bias = self._bias
        if window is not None and window < self._view_length:
            bias = bias.masked_fill(self._distance >= window, float("-inf"))
        bias = bias[:, None, None].to(query.dtype)
        grouped = query.view(n, key.shape[1], heads // key.shape[1], dim)
        output = torch.cat(
            [
                _attend_alike(
                    grouped[rows], key[rows, :, :length], value[rows, :, :length],
                    bias[rows, ..., :length], scaling,
                )
                for rows, length in self._views
            ]
        )  # fmt: skip
        return output.view(n, heads, 1, value.shape[-1])

    def _keys_looked_at(self, length: int) -> int:
        """By a row of `length` tokens: a multiple of 32 or, where attention sums in parts, of 512,
        so that its numbers do not depend, bit for bit, on the rows beside it."""
        step = LENGTH_STEP if length <= self._longest_unsplit else PART
        return round_up(length, step)

    def _grow(self, prompt: PromptKeysValues, num_slots: int) -> None:
        if not self._layers:
            for layer, (keys, values) in prompt.layers.items():
                shapes = [(0, t.shape[1], 0, t.shape[2]) for t in (keys, values)]
                empty = [t.new_empty(s) for t, s in zip((keys, values), shapes, strict=True)]
                self._layers[layer] = (empty[0], empty[1])
        self._reserve(num_slots)

    def _reserve(self, num_slots: int) -> None:
        """Hold `num_slots` rows of the longest present length. Slots double, so that few copies are
        made; where that is too much, what earlier rows needed is given back."""
        need = round_up(self._longest, BLOCK)
        if num_slots <= self._num_slots and need <= self._capacity:
            return
        slots, capacity = self._num_slots, max(need, self._capacity)
        if num_slots > slots:
            slots = max(num_slots, 2 * slots)
        if slots * capacity > self._max_tokens:
            slots, capacity = num_slots, need
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (
                _resized(keys, slots, capacity),
                _resized(values, slots, capacity),
            )
        self._num_slots, self._capacity = slots, capacity


def running_keys_values(base: BaseModel, max_tokens: int) -> RunningKeysValues:
    """For rows of a model."""
    config = base.module.config.get_text_config()
    heads, head_dim = key_value_heads(config)
    return RunningKeysValues(base.device, max_tokens, config.num_attention_heads // heads, head_dim)


def _views(needed: Sequence[int], call_keys: int) -> list[tuple[slice, int]]:
    """Neighbouring rows that are attended together, and how many keys that looks at, of which their
    rows need all but `call_keys` in all."""
    views: list[tuple[slice, int]] = []
    start = longest = sum_needed = 0
    for row, length in enumerate(needed):
        both = max(longest, length)
        if both * (row + 1 - start) - sum_needed - length > call_keys:
            views.append((slice(start, row), longest))
            start, sum_needed, both = row, 0, length
        longest, sum_needed = both, sum_needed + length
    return [*views, (slice(start, len(needed)), longest)]


def _attend_alike(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None
) -> Tensor:
    n = len(query)
    if n * key.shape[1] == 1:  # lest MKL share it out among threads: it would sum otherwise
        query, key, value = (tensor.expand(2, -1, -1, -1) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)[:n]


@cache
def longest_unsplit(num_sharing: int, head_dim: int) -> int:
    """The most keys over which attention on a CPU sums as it does over the same at the start of
    512.

    MKL sums over more in parts whose size depends on their number, with an Intel CPU from 288 keys
    on, and from 224 with one of AMD's if four queries share a key. So it is tried.
    """
    random = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(2, 1, count, head_dim, generator=random) for count in (num_sharing, PART, PART)
    )
    for length in range(LENGTH_STEP, PART, LENGTH_STEP):
        bias = torch.full((1, 1, 1, PART), float("-inf"))
        bias[..., :length] = 0
        alone, beside = (
            _attend_alike(query, keys[:, :, :n], values[:, :, :n], bias[..., :n], None)
            for n in (length, PART)
        )
        if not torch.equal(alone, beside):
            return length - LENGTH_STEP
    return PART


def _resized(tensor: Tensor, num_slots: int, capacity: int) -> Tensor:
    # Zeros, not garbage: a masked position times a NaN would still be a NaN.
    new = tensor.new_zeros(num_slots, tensor.shape[1], capacity, tensor.shape[3])
    slots, length = min(num_slots, tensor.shape[0]), min(capacity, tensor.shape[2])
    new[:slots, :, :length] = tensor[:slots, :, :length]
    return new
