"""Keys and values of running sequences, and the attention over them.

The model's own attention modules call `update` and then the attention function registered here,
so that any transformers model with plain attention layers samples through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.model import families
from tinsmith.backend.sampling.decode_attention import attend_rows
from tinsmith.backend.sampling.heads import place_heads
from tinsmith.backend.sampling.prompt_keys_values import LENGTH_STEP, PromptKeysValues, round_up

ATTENTION = "tinsmith_keys_values"
BLOCK = 64  # capacities grow in blocks, so that few sizes ever exist
# Keys that PyTorch's attention reads in vain rather than be called once more.
CALL_KEYS = {"cpu": 256, "cuda": 1 << 14}
FIXED_BLOCK = 256  # and in larger ones where steps are recorded, which holds while they do not grow
# Keys that a recorded step reads in vain rather than be computed by Python: of a model with 36
# layers and 8 heads of 128 numbers that takes an H100 6 ms, by its memory's rate.
VAIN_KEYS = 1 << 17


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


@dataclass(frozen=True, slots=True, eq=False)
class _Prompt:
    """What rows that were admitted together have the same keys and values of."""

    length: int


class RunningKeysValues:
    """Of the running rows: preallocated, row i of the batch in slot i, each at its own length."""

    def __init__(self, device: torch.device, max_tokens: int) -> None:
        """More than `max_tokens` (slots x capacity) are held only where the rows need them."""
        self.device = device
        self._max_tokens = max_tokens
        self._longest = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._num_slots = 0
        self._capacity = 0
        self.num_moves = 0  # to other memory than what was read and written before
        self._lengths = self._slots = self._rows = torch.zeros(0, dtype=torch.long, device=device)
        self._prompts: dict[int, _Prompt] = {}  # by slot
        self._views: list[tuple[slice, int]] = []
        self._biases: dict[tuple[int, int | None], Tensor] = {}

    def get_seq_length(self, *_: Any) -> int:
        return self._longest

    def admit(self, slots: Sequence[int], prompt: PromptKeysValues, row: int, length: int) -> None:
        """Copy the keys and values of a prompt of `length` tokens into each of `slots`."""
        self._longest = max(self._longest, length + 1)
        self._grow(prompt, max(slots) + 1)
        where = torch.tensor(slots, device=self.device)
        self._prompts |= dict.fromkeys(slots, _Prompt(length))
        for layer, keys, values in prompt.of(row):
            mine_k, mine_v = self._layers[layer]
            mine_k[where, :, :length] = keys.transpose(0, 1)
            mine_v[where, :, :length] = values.transpose(0, 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot, so that the running rows stay the first ones."""
        for keys, values in self._layers.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]
        self._prompts[target] = self._prompts[source]

    def begin_step(self, lengths: Sequence[int]) -> Tensor:
        """Prepare one decode step of rows with `lengths` tokens; returns positions [n, 1]."""
        needed = [round_up(length + 1, LENGTH_STEP) for length in lengths]
        self._longest = max(needed)
        self._reserve(len(lengths))
        views = _views(needed, CALL_KEYS[self.device.type])
        self._look_at(views, torch.tensor(lengths, device=self.device))
        self._rows = torch.tensor(self._sharing(lengths))
        return self._lengths[:, None]

    def begin_fixed_step(self, lengths: Sequence[int], num_rows: int) -> bool:
        """Make room for a decode step of the first `num_rows` slots that attends to their whole
        capacity; the first rows have `lengths` tokens, the others none. False, where that would
        take too much memory or time."""
        self._longest = max(lengths) + 1
        num_keys = num_rows * max(self._capacity, round_up(self._longest, FIXED_BLOCK))
        if num_keys > self._max_tokens or num_keys - sum(lengths) > VAIN_KEYS:
            return False
        self._reserve(num_rows, FIXED_BLOCK)
        return True

    def look_at_all(self, lengths: Tensor) -> None:
        """Attend from now on as `begin_fixed_step` made room for, to as many keys as `lengths`
        [rows] say whenever it is computed."""
        self._look_at([(slice(0, len(lengths)), self._capacity)], lengths)

    def _look_at(self, views: list[tuple[slice, int]], lengths: Tensor) -> None:
        self._views, self._lengths = views, lengths
        self._slots = torch.arange(len(lengths), device=self.device)
        self._biases.clear()

    def _sharing(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        """Of each row the first one that has its prompt, the tokens of that, and its own with the
        new one."""
        firsts: dict[int, int] = {}
        prompts = [self._prompts[row] for row in range(len(lengths))]
        return [
            (firsts.setdefault(id(prompt), row), prompt.length, length + 1)
            for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        ]

    def place(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        norm: tuple[Tensor, float] | None,
        layer: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and keys and values with the new ones, of what `place_heads` takes."""
        n = len(heads)
        keys, values = (tensor[:n] for tensor in self._layers[layer])
        cos, sin = (angles.flatten(1) for angles in rotation)
        return place_heads(heads, (cos, sin), norm, keys, values, self._rows), keys, values

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer]
        keys[self._slots, :, self._lengths] = key[:, :, 0]
        values[self._slots, :, self._lengths] = value[:, :, 0]
        n = len(self._slots)
        return keys[:n], values[:n]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """One query token a row."""
        if query.device.type == "cpu" and query.dtype == torch.float32 and openmp() is not None:
            return attend_rows(query, key, value, self._rows, scaling, window)
        # The heads that share a key are attended as query positions.
        n, heads, _, dim = query.shape
        grouped = query.view(n, key.shape[1], heads // key.shape[1], dim)
        outputs = [
            F.scaled_dot_product_attention(
                grouped[rows],
                key[rows, :, :length],
                value[rows, :, :length],
                attn_mask=self._bias(rows, length, window, query.dtype),
                scale=scaling,
            )
            for rows, length in self._views
        ]
        return torch.cat(outputs).view(n, heads, 1, -1)

    def _bias(self, rows: slice, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores [n, 1, 1, T], the same in many layers, of keys that a row does
        not see."""
        known = self._biases.get((rows.start, window))
        if known is None:
            distance = self._lengths[rows, None] - torch.arange(length, device=self.device)
            is_hidden = distance < 0
            if window is not None:
                is_hidden |= distance >= window
            bias = torch.zeros(is_hidden.shape, dtype=dtype, device=self.device)
            known = bias.masked_fill_(is_hidden, float("-inf"))[:, None, None]
            self._biases[rows.start, window] = known
        return known

    def _grow(self, prompt: PromptKeysValues, num_slots: int) -> None:
        if not self._layers:
            for layer, (keys, values) in prompt.layers.items():
                shapes = [(0, t.shape[1], 0, t.shape[2]) for t in (keys, values)]
                empty = [t.new_empty(s) for t, s in zip((keys, values), shapes, strict=True)]
                self._layers[layer] = (empty[0], empty[1])
        self._reserve(num_slots)

    def _reserve(self, num_slots: int, block: int = BLOCK) -> None:
        """Hold `num_slots` rows of the longest present length. Slots double, so that few copies are
        made; where that is too much, what earlier rows needed is given back."""
        need = round_up(self._longest, block)
        if num_slots <= self._num_slots and need <= self._capacity:
            return
        slots, capacity = self._num_slots, max(need, self._capacity)
        if num_slots > slots:
            slots = max(num_slots, 2 * slots)
        if slots * capacity > self._max_tokens:
            slots, capacity = num_slots, need
        self.num_moves += 1
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (
                _resized(keys, slots, capacity),
                _resized(values, slots, capacity),
            )
        self._num_slots, self._capacity = slots, capacity


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


def _resized(tensor: Tensor, num_slots: int, capacity: int) -> Tensor:
    # Zeros, not garbage: a masked position times a NaN would still be a NaN.
    new = tensor.new_zeros(num_slots, tensor.shape[1], capacity, tensor.shape[3])
    slots, length = min(num_slots, tensor.shape[0]), min(capacity, tensor.shape[2])
    new[:slots, :, :length] = tensor[:slots, :, :length]
    return new
