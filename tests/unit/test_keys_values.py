"""Rows that are attended together look at few keys in vain."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.sampling.keys_values import RunningKeysValues, _views
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues

LENGTHS = st.lists(st.integers(1, 40).map(lambda n: 32 * n), min_size=1, max_size=80)


@given(LENGTHS, st.integers(0, 2000))
def test_neighbouring_rows_are_attended_together_within_a_bound_of_keys_in_vain(
    needed: list[int], call_keys: int
):
    views = _views(needed, call_keys)
    rows = [row for own, _ in views for row in range(own.start, own.stop)]
    assert rows == list(range(len(needed)))
    for own, longest in views:
        assert longest == max(needed[own])
        assert longest * len(needed[own]) - sum(needed[own]) <= call_keys
    for (own, longest), (behind, _) in pairwise(views):
        together = [*needed[own], needed[behind.start]]
        assert max(longest, together[-1]) * len(together) - sum(together) > call_keys


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_rows_beside_a_long_one_look_at_few_keys(
    dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, ...]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *others: Any, **more: Any):
        seen.append(tuple(key.shape[::2]))
        return real(query, key, *others, **more)

    running = RunningKeysValues(torch.device("cpu"), 10**6)
    for slot, size in enumerate((1000, 20, 20)):
        prompt = PromptKeysValues([size], torch.device("cpu"))
        key, value = torch.randn(2, 1, 2, size, 4, dtype=dtype)
        prompt.update(key, value, 0)
        running.admit([slot], prompt, 0, size)
    running.begin_step([1000, 20, 20])
    query = torch.randn(3, 6, 1, 4, dtype=dtype)  # three heads share a key
    key, value = torch.randn(2, 3, 2, 1, 4, dtype=dtype)
    keys, values = running.update(key, value, 0)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    output = running.attend(query, keys, values, 0.3, window)
    # In float32 PyTorch's attention is not used, and each row looks at its own keys alone.
    is_compiled = dtype == torch.float32 and openmp() is not None
    assert seen == ([] if is_compiled else [(1, 1024), (2, 32)])
    for slot, length in enumerate((1001, 21, 21)):
        first = 0 if window is None else length - window
        q, k, v = (
            tensor[slot].double()
            for tensor in (query, keys[:, :, first:length], values[:, :, first:length])
        )
        scores = torch.einsum("hgd,htd->hgt", q.view(2, 3, 4), k) * 0.3
        expected = torch.einsum("hgt,htd->hgd", scores.softmax(-1), v).view(6, 1, 4)
        assert torch.allclose(output[slot].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 20, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_one_prompt_attend_to_it_wherever_they_and_it_have_moved(
    dtype: torch.dtype, window: int | None
):
    running = RunningKeysValues(torch.device("cpu"), 10**6)
    prompts = [PromptKeysValues([size], torch.device("cpu")) for size in (40, 30)]
    seen: list[torch.Tensor] = []  # keys [T, H, K] of each row
    for prompt, slots, size in zip(prompts, ([0, 1, 2], [3, 4]), (40, 30), strict=True):
        key = torch.randn(1, 2, size, 4, dtype=dtype)
        prompt.update(key, key, 0)
        running.admit(slots, prompt, 0, size)
        seen += [key[0].transpose(0, 1)] * len(slots)
    for ended in (0, 2, 1):
        lengths = [len(keys) for keys in seen]
        running.begin_step(lengths)
        query = torch.randn(len(seen), 6, 1, 4, dtype=dtype)
        new = torch.randn(len(seen), 2, 1, 4, dtype=dtype)
        keys, values = running.update(new, new, 0)
        output = running.attend(query, keys, values, 0.3, window)
        seen = [torch.cat([own, k.transpose(0, 1)]) for own, k in zip(seen, new, strict=True)]
        for q, own, found in zip(query, seen, output, strict=True):
            exact = own[-(window or len(own)) :].transpose(0, 1).double()
            weights = (q.view(2, 3, 4).double() @ exact.transpose(1, 2) * 0.3).softmax(-1)
            assert torch.allclose(found.view(2, 3, 4).double(), weights @ exact, atol=1e-6)
        running.move(len(seen) - 1, ended, len(seen[-1]))
        seen[ended] = seen.pop()
