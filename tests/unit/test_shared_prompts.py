"""A shared prompt computed once: the same numbers and gradients as sequence by sequence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tinsmith.backend.model.score
from tests.losses import CASES
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.packed_attention import use_packed_attention
from tinsmith.backend.model.score import score
from tinsmith.backend.model.shared_prompts import (
    Group,
    find_groups,
    num_tokens,
    pack,
    packed_batches,
    packed_hidden_states,
)

LENGTHS = (30, 25, 33, 40, 30, 21, 50, 19)


def grouped(data: Sequence[Datum], prompt: int = 18) -> list[Datum]:
    """The data with two prompts: that of its first sequence for the first five, that of the sixth
    for the rest, which are in no order."""
    rng = np.random.default_rng(3)
    prompts = rng.integers(0, 400, (2, prompt))
    return [
        Datum(np.concatenate([prompts[int(i >= 5)], datum.tokens[prompt:]]),
              datum.target_tokens, datum.loss_inputs)
        for i, datum in enumerate(data)
    ]  # fmt: skip


@contextmanager
def in_dtype(base: BaseModel, dtype: torch.dtype) -> Iterator[BaseModel]:
    """The base in another type; put back afterwards, since it is shared."""
    before = [(parameter, parameter.data) for parameter in base.module.parameters()]
    buffers = [
        (module, name, buffer)
        for module in base.module.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    torch.nn.Module.to(base.module, dtype)
    try:
        yield base
    finally:
        for parameter, data in before:
            parameter.data = data
        for module, name, buffer in buffers:  # of which `to` makes new ones
            setattr(module, name, buffer)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def typed_base(base: BaseModel, request: pytest.FixtureRequest) -> Iterator[BaseModel]:
    with in_dtype(base, request.param):
        yield base


def scored(
    base: BaseModel, parts: Sequence[list[Datum]], case: str
) -> tuple[list[Scored], list[Tensor], list[int]]:
    """The data part by part on one adapter, its gradient, and how many tokens went through."""
    module = attach_adapter(base, LoraSettings(rank=4, alpha=32.0), seed=3)
    generator = torch.Generator().manual_seed(4)
    for _, a, b in lora_pairs(module):
        a.data = a.data.to(base.dtype)
        b.data = 0.02 * torch.randn(b.shape, generator=generator).to(base.dtype)
    sizes: list[int] = []
    backbone(module).register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    results = [score(module, part, CASES[case][0], 8192, forward_only=False) for part in parts]
    gradients = [p.grad for _, *pair in lora_pairs(module) for p in pair if p.grad is not None]
    return results, gradients, sizes


@pytest.mark.parametrize("is_merged", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("case", CASES)
def test_a_shared_prompt_gives_the_numbers_and_gradients_of_the_plain_computation(
    typed_base: BaseModel, case: str, is_merged: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tinsmith.backend.model.score, "pays_to_merge", lambda *_: is_merged)
    data = grouped(CASES[case][1](0, LENGTHS))
    [together], shared_gradients, sizes = scored(typed_base, [data], case)
    assert sizes == [sum(LENGTHS) - 4 * 18 - 2 * 18]
    alone, gradients, _ = scored(typed_base, [[datum] for datum in data], case)
    # The losses are computed in float32 whatever the model is.
    tolerance = 1e-6
    assert together.loss == pytest.approx(sum(part.loss for part in alone), rel=1e-5)
    for one, other in zip(alone, together.logprobs, strict=True):
        np.testing.assert_allclose(one.logprobs[0], other, rtol=tolerance, atol=tolerance)
    for one, other in zip(gradients, shared_gradients, strict=True):
        assert (one - other).norm() <= tolerance * one.norm()


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor made within the block has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        self.num_elements = max([self.num_elements, *(tensor.numel() for tensor in made)])
        return result


SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
# Of every way in which transformers' models ask for their masks: one for all layers, with a window
# or without, or one by kind of layer.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral, all layers slide": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, sliding_window=24)
    ),
    "qwen3, the second layer slides": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_behind_a_shared_prompt_are_those_of_transformers_in_float64(name: str):
    """And no tensor has a place for every pair of tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MODELS[name]().double().eval()
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 400, 20)
    rows = [np.concatenate([prompt, rng.integers(0, 400, size)]) for size in [40] * 9 + [1]]
    packed = pack(rows, find_groups(rows, packs_all=False))
    count = len(packed.ids_N)
    assert count == 20 + 9 * 40 + 1
    with torch.no_grad():
        truths = [backbone(module)(torch.from_numpy(row)[None])[0][0] for row in rows]
        use_packed_attention(module)
        with LargestTensor() as largest:
            hidden_ND = packed_hidden_states(backbone(module), packed, module.device)
    for places, truth_TD in zip(packed.places, truths, strict=True):
        torch.testing.assert_close(hidden_ND[places], truth_TD, rtol=1e-12, atol=1e-12)
    assert count * SIZES["intermediate_size"] <= largest.num_elements < count * count


def test_groups_are_found_in_any_order_and_only_where_they_pay():
    long, other = np.arange(100), np.arange(500, 600)
    rows = [
        np.append(long, [1, 2]), np.append(other, [3]), np.arange(7), np.append(long, [4]),
        np.append(other, [5, 6, 7]), np.append(np.arange(20), np.arange(300, 500)),
    ]  # fmt: skip
    groups = find_groups(rows, packs_all=False)
    assert {(frozenset(g.rows), g.size) for g in groups if g.size} == {
        (frozenset({0, 3}), 100), (frozenset({1, 4}), 100)
    }  # fmt: skip
    assert sorted(row for group in groups for row in group.rows) == list(range(6))
    assert num_tokens(Group((0, 3), 100), rows) == 103


def test_equal_sequences_share_all_but_their_last_token():
    rows = [np.arange(40)] * 3
    assert find_groups(rows, packs_all=False) == [Group((0, 1, 2), 39)]
    assert [
        places.tolist() for places in pack(rows, find_groups(rows, packs_all=False)).places
    ] == [[*range(39), last] for last in (39, 40, 41)]


def test_where_all_are_packed_any_prompt_that_is_long_enough_is_shared():
    prompt = list(range(36))
    rows = [np.array([*prompt, *range(100 * i, 100 * i + 90)]) for i in range(4, 7)]
    assert all(group.size == 0 for group in find_groups(rows, packs_all=False)), "it saves 19 %"
    assert find_groups(rows, packs_all=True) == [Group((0, 1, 2), 36)]
    long = [np.append(row, np.arange(1000, 1110)) for row in rows]
    assert all(group.size == 0 for group in find_groups(long, packs_all=True)), "it needs masks"
    short = [row[21:] for row in rows]
    assert all(group.size == 0 for group in find_groups(short, packs_all=True))


def test_a_group_beyond_the_budget_is_cut_evenly_and_packed_with_the_rest_in_full():
    rows = [np.array([*range(20), *range(100 * i, 100 * i + 10)]) for i in range(3, 11)]
    rows += [np.arange(50 * size, 51 * size) for size in (25, 60, 8)]
    batches = list(packed_batches(rows, token_budget=90, packs_all=True))
    assert sorted(row for batch in batches for row in batch) == list(range(11))
    assert [len(batch) for batch in batches] == [4, 4, 2, 1]
    assert batches[2:] == [[9, 8], [10]]
    assert list(packed_batches(rows, token_budget=90, packs_all=False)) == batches[:2]
