"""What activations take is predicted, and where it is too much, they are computed twice."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tinsmith.backend.model.score
from tests.datums import cross_entropy_data, policy_data
from tests.models import make_model
from tests.packed import packed_states
from tests.unit.test_forward import CROSS_ENTROPY, SETTINGS, adapted, gradients
from tests.unit.test_score import LENGTHS, MESSAGES, SmallMemory
from tests.unit.test_trainer import IMPORTANCE_SAMPLING, PLAIN
from tinsmith.backend.model import compiled_attention, training_layer
from tinsmith.backend.model.activations import peak_bytes, recomputed_layers, tokens_within
from tinsmith.backend.model.base_model import BaseModel, backbone, load_base_models
from tinsmith.backend.model.packed_attention import attend_parts
from tinsmith.backend.model.score import score
from tinsmith.backend.model.trainer import Trainer
from tinsmith.errors import TinsmithError


@pytest.fixture(autouse=True)
def unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged weights, which go before anything here does, have their own tests."""
    monkeypatch.setattr(tinsmith.backend.model.score, "pays_to_merge", lambda *_: False)


def kept_bytes(base: BaseModel, num_rows: int, length: int, recomputes: bool) -> int:
    """What autograd holds of a forward pass, weights and adapters aside."""
    module = adapted(base)
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.randint(0, base.vocabulary_size, (num_rows, length)).tolist()
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        recomputed_layers(module) if recomputes else nullcontext(),
    ):
        states = packed_states(module, rows)
    assert all(state.requires_grad for state in states)
    return sum(kept.values())


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_prediction_bounds_what_autograd_keeps_and_is_near_it(
    base: BaseModel, recomputes: bool
):
    module = adapted(base)
    predicted, held = [], []
    for num_rows in (2, 6):
        size = 64 * num_rows
        logits = 12 * size * base.vocabulary_size
        bound = peak_bytes(module, size, recomputes=recomputes, num_scores=64 * size)
        predicted.append(bound - logits)
        held.append(kept_bytes(base, num_rows, 64, recomputes))
        if recomputes:  # and everything for one layer of two, which is computed again
            held[-1] += kept_bytes(base, num_rows, 64, recomputes=False) // 2
    assert all(mine >= truth for mine, truth in zip(predicted, held, strict=True))
    # By token, so that what every batch has, such as the angles of positions, does not count.
    assert (predicted[1] - predicted[0]) <= 1.7 * (held[1] - held[0])


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_prediction_bounds_what_compiled_attention_keeps(recomputes: bool, tmp_path: Path):
    """It keeps no scores, which would be half of it all here."""
    source = str(make_model(tmp_path, "qwen3", head_dim=64))
    base = load_base_models({"wide": source}, "cpu", "float32")["wide"]
    module = adapted(base)
    if not compiled_attention.is_for("cpu", module.dtype, 64):
        pytest.skip("attention is not compiled here")
    size = 6 * 64
    bound = peak_bytes(module, size, recomputes=recomputes) - 12 * size * base.vocabulary_size
    held = kept_bytes(base, 6, 64, recomputes)
    if recomputes:
        held += kept_bytes(base, 6, 64, recomputes=False) // 2
    assert held <= bound <= 1.7 * held


def test_layers_that_are_computed_twice_keep_less_and_give_the_same_gradient(base: BaseModel):
    assert kept_bytes(base, 4, 64, recomputes=True) < kept_bytes(base, 4, 64, recomputes=False) / 3
    data = cross_entropy_data(seed=1)
    found = []
    for memory_bytes in (None, 0):
        module = adapted(base)
        scored = score(module, data, CROSS_ENTROPY, 64, False, memory_bytes=memory_bytes)
        found.append((scored.loss, gradients(module)))
    (one, plain), (two, recomputed) = found
    assert one == two
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_layers_are_computed_twice_exactly_where_memory_asks_for_it(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    data = cross_entropy_data(seed=2, lengths=[40, 10])
    module = adapted(base)
    sizes = []

    def counting(query: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(query))
        return attend_parts(query, *rest)

    monkeypatch.setattr(training_layer, "attend_parts", counting)
    enough = peak_bytes(module, 10, recomputes=False)
    score(module, data, CROSS_ENTROPY, 40, False, memory_bytes=enough)
    assert sorted(sizes) == [10, 10, 40, 40, 40, 40], "in two layers, twice only that of 40 tokens"


def test_a_budget_beyond_the_memory_is_lowered_to_what_the_prediction_allows(
    base: BaseModel, caplog: pytest.LogCaptureFixture
):
    module = adapted(base)
    memory_bytes = peak_bytes(module, 30, recomputes=True)
    assert tokens_within(module, memory_bytes) == 30
    assert tokens_within(module, 1) == 1
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(base, SETTINGS, 0, token_budget=64, memory_bytes=memory_bytes)
    assert "predicted to hold 30 tokens: the token budget is lowered to that from 64" in caplog.text
    sizes: list[int] = []
    backbone(trainer._module).register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    trainer.forward_backward(policy_data(0, [15] * 4), IMPORTANCE_SAMPLING, forward_only=False)
    assert sizes == [30, 30]


def test_after_memory_ran_out_a_model_goes_on_with_half_the_budget(base: BaseModel):
    trainer = Trainer(base, SETTINGS, 0, token_budget=64)
    small = SmallMemory(backbone(trainer._module), 36, MESSAGES[0], in_backward=True)
    data = policy_data(0, LENGTHS)
    for _ in range(3):
        trainer.forward_backward(data, IMPORTANCE_SAMPLING, forward_only=False)
    assert small.num_failures == 1
    assert max(small.sizes[1:]) <= 30


class SmallMemoryForGraphs:
    """Memory that runs out where all layers of a batch of more than `max_tokens` hold what their
    backward needs; computed twice, they fit."""

    def __init__(self, module: torch.nn.Module, max_tokens: int):
        self.max_tokens = max_tokens
        self.num_failures = 0
        self.sizes_computed_once: list[int] = []
        self._size = 0
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.get_submodule("layers.1").register_forward_hook(self._behind_last)

    def _before(self, _: torch.nn.Module, __: tuple, kwargs: dict[str, Tensor]) -> None:
        self._size = kwargs["input_ids"].numel()

    def _behind_last(self, layer: torch.nn.Module, *_: object) -> None:
        is_computed_again = "forward" in vars(layer)  # see recomputed_layers
        if is_computed_again or not torch.is_grad_enabled():
            return
        if self._size > self.max_tokens:
            self.num_failures += 1
            raise MESSAGES[0]
        self.sizes_computed_once.append(self._size)


def test_a_sequence_that_does_not_fit_alone_has_its_layers_computed_twice(base: BaseModel):
    [datum] = cross_entropy_data(seed=3, lengths=[50])
    plain = adapted(base)
    expected = score(plain, [datum], CROSS_ENTROPY, 64, False)
    module = adapted(base)
    small = SmallMemoryForGraphs(backbone(module), 40)
    found = score(module, [datum], CROSS_ENTROPY, 64, False)
    assert small.num_failures == 1
    assert found.loss == expected.loss
    ours = gradients(module)
    assert all(torch.equal(g, ours[name]) for name, g in gradients(plain).items())


def test_a_model_remembers_what_has_to_be_computed_twice(base: BaseModel):
    """In the requests that follow; sequences of less than half the size are computed once still."""
    data = cross_entropy_data(seed=3, lengths=[50, 42, 20])
    plain, trainer = (Trainer(base, SETTINGS, 0, token_budget=1) for _ in range(2))
    small = SmallMemoryForGraphs(backbone(trainer._module), 40)
    for request in range(3):
        expected, found = (
            t.forward_backward(data, CROSS_ENTROPY, forward_only=False) for t in (plain, trainer)
        )
        assert small.num_failures == 1
        assert small.sizes_computed_once == [20] * (request + 1)
        assert found.metrics == expected.metrics
    norms = [t.optim_step(PLAIN)["grad_norm"] for t in (plain, trainer)]
    assert norms[0] == norms[1]


def test_memory_that_runs_out_without_a_graph_computes_nothing_twice(base: BaseModel):
    """It would take no less of it, so the next request has its layers computed once."""
    trainer = Trainer(base, SETTINGS, 0, token_budget=64)
    small = SmallMemory(backbone(trainer._module), 30, MESSAGES[0], in_backward=False)
    data = cross_entropy_data(seed=4, lengths=[40])
    with pytest.raises(TinsmithError, match="does not fit into the memory"):
        trainer.forward_backward(data, CROSS_ENTROPY, forward_only=True)
    assert small.sizes[:2] == [40, 20], "once, then the search for a length that fits"
    small.max_tokens = 64
    graphs = SmallMemoryForGraphs(backbone(trainer._module), 64)
    trainer.forward_backward(data, CROSS_ENTROPY, forward_only=False)
    assert graphs.sizes_computed_once == [40]
