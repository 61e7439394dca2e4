"""A shared prompt computed once: the same numbers and gradients as sequence by sequence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses import CASES
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.score import score
from tinsmith.backend.model.shared_prompts import Group, find_groups, num_tokens, pack

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
    tensors = [*base.module.parameters(), *base.module.buffers()]
    before = [tensor.data for tensor in tensors]
    torch.nn.Module.to(base.module, dtype)
    try:
        yield base
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data


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


@pytest.mark.parametrize("case", CASES)
def test_a_shared_prompt_gives_the_numbers_and_gradients_of_the_plain_computation(
    typed_base: BaseModel, case: str
):
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


def test_hidden_states_behind_a_shared_prompt_are_those_of_transformers_in_float64(
    base: BaseModel,
):
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 400, 20)
    rows = [np.concatenate([prompt, rng.integers(0, 400, size)]) for size in (1, 7, 40)]
    packed = pack(rows, find_groups(rows))
    assert len(packed.ids_N) == 20 + 48
    with in_dtype(base, torch.float64), torch.no_grad():
        module = attach_adapter(base, LoraSettings(rank=4, alpha=32.0), seed=3)
        [hidden_ND] = backbone(module)(
            input_ids=torch.from_numpy(packed.ids_N)[None],
            position_ids=torch.from_numpy(packed.positions_N)[None],
            use_cache=False,
            parts=packed.parts,
        ).last_hidden_state
        for row, places in zip(rows, packed.places, strict=True):
            [truth_TD] = backbone(base.module)(
                input_ids=torch.from_numpy(row)[None]
            ).last_hidden_state
            torch.testing.assert_close(hidden_ND[places], truth_TD, rtol=1e-12, atol=1e-12)


def test_groups_are_found_in_any_order_and_only_where_they_pay():
    long, other = np.arange(100), np.arange(500, 600)
    rows = [
        np.append(long, [1, 2]), np.append(other, [3]), np.arange(7), np.append(long, [4]),
        np.append(other, [5, 6, 7]), np.append(np.arange(20), np.arange(300, 500)),
    ]  # fmt: skip
    groups = find_groups(rows)
    assert {(frozenset(g.rows), g.size) for g in groups if g.size} == {
        (frozenset({0, 3}), 100), (frozenset({1, 4}), 100)
    }  # fmt: skip
    assert sorted(row for group in groups for row in group.rows) == list(range(6))
    assert num_tokens(Group((0, 3), 100), rows) == 103


def test_equal_sequences_share_all_but_their_last_token():
    rows = [np.arange(40)] * 3
    assert find_groups(rows) == [Group((0, 1, 2), 39)]
    assert [places.tolist() for places in pack(rows, find_groups(rows)).places] == [
        [*range(39), last] for last in (39, 40, 41)
    ]
