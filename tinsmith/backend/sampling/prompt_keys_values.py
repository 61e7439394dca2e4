"""Keys and values of prompts that go through the model together, and the attention over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# CPU attention rounds otherwise over fewer keys than this. Attention looks at a multiple of it, at
# once of those prompts alone that have the same one.
LENGTH_STEP = 32


@dataclass(frozen=True, slots=True)
class _Alike:
    """Prompts of one padded length: where each token of them stands [B, T], in place of padding
    once more a prompt's last, and which are tokens."""

    places_BT: Tensor
    is_token_BT: Tensor


class PromptKeysValues:
    """Of one prefill: every layer's keys and values [N, H, K] of prompts one behind the other.

    Only attention looks at more than one token, and so only there prompts are padded, to lengths
    between which it does not change how it sums.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        ends = list(accumulate(lengths))
        self.prompts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._device = device
        self._alike = list(self._groups())

    def _groups(self) -> Iterator[_Alike]:
        def padded(prompt: slice) -> int:
            return round_up(prompt.stop - prompt.start, LENGTH_STEP)

        for size, prompts in groupby(sorted(self.prompts, key=padded), key=padded):
            first_and_last = torch.tensor([(prompt.start, prompt.stop - 1) for prompt in prompts])
            first_B1, last_B1 = first_and_last[:, :, None].to(self._device).unbind(1)
            places_BT = first_B1 + torch.arange(size, device=self._device)
            yield _Alike(torch.minimum(places_BT, last_B1), places_BT <= last_B1)

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        # Copies, lest what they are parts of stay in memory.
        k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (key, value))
        self.layers[layer] = (k, v)
        return key, value

    def of(self, row: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each layer, and the keys and values [T, H, K] that a prompt has there."""
        own = self.prompts[row]
        return ((layer, keys[own], values[own]) for layer, (keys, values) in self.layers.items())

    def only(self, row: int) -> "PromptKeysValues":
        """A copy of one prompt's."""
        own = self.prompts[row]
        alone = PromptKeysValues([own.stop - own.start], self._device)
        alone.layers = {layer: (k.clone(), v.clone()) for layer, k, v in self.of(row)}
        return alone

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Causal attention within each prompt; padding stands behind its tokens, where none of them
        looks."""
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        sharing = query.shape[1] // key.shape[1]
        for alike in self._alike:
            length = alike.places_BT.shape[1]
            mask = None
            if window is not None and window < length:
                mask = torch.ones(length, length, dtype=torch.bool, device=query.device)
                mask = mask.tril().triu(1 - window)
            q, k, v = (
                tensor[0].transpose(0, 1)[alike.places_BT].transpose(1, 2)
                for tensor in (query, key, value)
            )
            attended = F.scaled_dot_product_attention(
                q,
                k.repeat_interleave(sharing, dim=1),
                v.repeat_interleave(sharing, dim=1),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
            )
            places_N = alike.places_BT[alike.is_token_BT]
            output[places_N] = attended.transpose(1, 2)[alike.is_token_BT]
        return output.transpose(0, 1)[None]


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step
