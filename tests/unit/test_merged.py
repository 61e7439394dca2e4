"""Adapters are merged for a request where that pays and fits, and nothing of it stays."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.datums import cross_entropy_data
from tests.unit.test_forward import CROSS_ENTROPY, adapted, gradients
from tests.unit.test_shared_prompts import in_dtype
from tinsmith.backend.model import products
from tinsmith.backend.model import score as scoring
from tinsmith.backend.model.activations import peak_bytes
from tinsmith.backend.model.adapter import lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.fused_lora import FusedLoraLinear
from tinsmith.backend.model.merged import (
    MIN_TOKENS,
    _adapted,
    can_merge,
    merged_adapters,
    merged_bytes,
    pays_to_merge,
)
from tinsmith.backend.model.narrow_products import width_for
from tinsmith.backend.model.packed_attention import num_scores
from tinsmith.backend.model.score import score
from tinsmith.backend.model.shared_prompts import find_groups, pack
from tinsmith.backend.model.side_by_side import SideBySide
from tinsmith.backend.model.training_layer import TrainingLayer

LENGTHS = (30, 60, 40)


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[SideBySide]:
    """What is merged, in order."""
    found: list[SideBySide] = []

    def merge(
        product: SideBySide,
        has_backward: bool,
        plain: Callable[[SideBySide, bool], None] = SideBySide.merge,
    ) -> None:
        plain(product, has_backward)
        found.append(product)

    monkeypatch.setattr(SideBySide, "merge", merge)
    return found


def test_merged_weights_give_the_numbers_and_gradients_of_two_products(
    base: BaseModel, merged: list[SideBySide], monkeypatch: pytest.MonkeyPatch
):
    """In float64, where only the losses, in float32, round; the unembedding among them, and for
    other weights when they have changed."""
    data = cross_entropy_data(seed=1)
    found = []
    with in_dtype(base, torch.float64):
        for is_merged in (False, True):
            monkeypatch.setattr(scoring, "pays_to_merge", lambda *_, pays=is_merged: pays)
            module = in_float64(adapted(base))
            score(module, data, CROSS_ENTROPY, 64, False)
            for _, _, b in lora_pairs(module):
                b.data.add_(0.01)
            found.append((score(module, data, CROSS_ENTROPY, 64, False), gradients(module)))
    assert len(merged) == 2 * (2 * 4 + 1), "two requests; four products a layer, and the last"
    (one, plain), (other, mine) = found
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    for name, gradient in plain.items():
        assert (mine[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def in_float64(module: PreTrainedModel) -> PreTrainedModel:
    for _, *pair in lora_pairs(module):
        for side in pair:
            side.data = side.data.double()
    return module


def test_a_request_without_gradients_says_what_one_with_gradients_says(base: BaseModel):
    data = cross_entropy_data(seed=1, lengths=LENGTHS)
    module = adapted(base)
    assert pays_to_merge(module, sum(LENGTHS))
    training, scoring = (score(module, data, CROSS_ENTROPY, 64, only) for only in (False, True))
    assert training.loss == scoring.loss
    for one, other in zip(training.logprobs, scoring.logprobs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_bases_weights_stay_and_merged_ones_do_not_whatever_happens(
    base: BaseModel, merged: list[SideBySide]
):
    module = adapted(base)
    before = [parameter.clone() for parameter in base.module.parameters()]
    seen: list[bool] = []

    def fail() -> None:
        seen.extend(product._merged is not None for product in merged)
        raise KeyError("midway")

    with pytest.raises(KeyError), merged_adapters(module, has_backward=True):
        fail()
    assert seen == [True] * (2 * 4 + 1)
    assert all(product._merged is None for product in merged[:-1])
    last = module.get_output_embeddings()
    assert isinstance(last, FusedLoraLinear)
    assert last._merged_product is None
    for parameter, own in zip(base.module.parameters(), before, strict=True):
        assert torch.equal(parameter, own)


def test_merged_is_what_pays_in_a_dtype_that_holds_small_updates(base: BaseModel):
    module = adapted(base)
    enough = MIN_TOKENS * module.config.hidden_size
    assert pays_to_merge(module, enough)
    assert not pays_to_merge(module, enough - 1)
    assert can_merge(module)
    with in_dtype(base, torch.bfloat16):
        assert not can_merge(adapted(base))


@pytest.mark.parametrize("missing", [0, 1])
def test_merged_weights_are_part_of_the_memory_that_a_request_may_take(
    base: BaseModel, merged: list[SideBySide], missing: int
):
    """Else its layers would be computed twice, which takes more time than is saved."""
    data = cross_entropy_data(seed=1, lengths=LENGTHS)
    module = adapted(base)
    rows = [datum.tokens for datum in data]
    scores = sum(num_scores(part) for part in pack(rows, find_groups(rows, True)).parts)
    peak = peak_bytes(module, sum(LENGTHS), recomputes=False, num_scores=scores)
    memory_bytes = peak + merged_bytes(module, has_backward=True) - missing
    score(module, data, CROSS_ENTROPY, sum(LENGTHS), False, memory_bytes=memory_bytes)
    assert bool(merged) == (missing == 0)


@pytest.mark.parametrize("has_backward", [True, False])
@pytest.mark.parametrize("is_packed", [torch.backends.mkldnn.is_available(), False])
def test_merged_weights_take_what_is_said_of_them(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, is_packed: bool, has_backward: bool
):
    """Packed ones exist once for each way; of those that are not, one way is a view. What adapters'
    gradients take is as wide as they are multiplied by."""
    monkeypatch.setattr(products, "_prefers_onednn", lambda: is_packed)
    module = adapted(base)
    parts = [product for layer in _adapted(module) for product in layer.products()]
    once = sum(product.weight.nbytes for product in parts)
    passing = max(product.weight.nbytes for product in parts)
    expected = once * (1 + has_backward) + passing if is_packed else once
    pairs = [pair for p in parts for pair in zip(p.adapters[::2], p.adapters[1::2], strict=True)]
    widths = [width_for(len(a), "cpu", a.dtype) for a, _ in pairs]
    expected += sum(
        width * (a.shape[1] + len(b)) * a.itemsize
        for width, (a, b) in zip(widths, pairs, strict=True)
    )
    assert merged_bytes(module, has_backward) == expected
    with merged_adapters(module, has_backward):
        merged = [product._merged for layer in _adapted(module) for product in merged_of(layer)]
        weights = [one.weight for one in merged if one is not None]
        assert len(weights) == len(parts)
        assert all(one.forward.is_mkldnn == is_packed for one in weights)
        assert all(len(one.backward) == 0 for one in weights) == (not has_backward)
        tensors = [tensor for one in weights for tensor in (one.forward, *one.backward)]
        tensors += [tensor for one in merged if one for tensor in (one.all_a, *one.scaled_b)]
        assert sum(map(own_bytes, tensors)) == expected - (passing if is_packed else 0)


def merged_of(layer: TrainingLayer | FusedLoraLinear) -> list[SideBySide]:
    if isinstance(layer, TrainingLayer):
        return layer.products()
    assert layer._merged_product is not None
    return [layer._merged_product]


def own_bytes(tensor: Tensor) -> int:
    """What a tensor takes that is not another one seen across."""
    is_own = tensor.is_mkldnn or tensor.is_contiguous()
    return tensor.numel() * tensor.element_size() if is_own else 0


def test_where_memory_does_not_hold_merged_weights_a_request_goes_on_without(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    data = cross_entropy_data(seed=1, lengths=LENGTHS)
    monkeypatch.setattr(SideBySide, "merge", lambda *_: fail_for_memory())
    found = score(adapted(base), data, CROSS_ENTROPY, 64, False)
    monkeypatch.setattr(scoring, "pays_to_merge", lambda *_: False)
    assert found.loss == score(adapted(base), data, CROSS_ENTROPY, 64, False).loss


def test_merged_weights_go_before_a_budget_does(
    base: BaseModel, merged: list[SideBySide], monkeypatch: pytest.MonkeyPatch
):
    """Memory that runs out while they are there leaves the budgets and the result as they were."""
    data = cross_entropy_data(seed=1, lengths=LENGTHS)
    module, calls = adapted(base), []

    def before(*_: object) -> None:
        calls.append([product._merged is not None for product in merged[:-1]])
        if len(calls) == 2:
            fail_for_memory()

    backbone(module).register_forward_pre_hook(before)
    found = score(module, data, CROSS_ENTROPY, 64, False)
    assert calls == [[True] * 8, [True] * 8, [False] * 8, *([[False] * 8] * (len(calls) - 3))]
    assert found.token_budget is None
    assert found.memory_bytes is None
    plain = adapted(base)
    monkeypatch.setattr(scoring, "pays_to_merge", lambda *_: False)
    assert score(plain, data, CROSS_ENTROPY, 64, False).loss == pytest.approx(found.loss, rel=1e-6)
    for name, gradient in gradients(plain).items():
        assert (gradients(module)[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def fail_for_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
