"""A batch that does not fit into memory is split with the same result; what never fits is refused.

Memory runs out at the seam where it does: in the model's own layers, forward or backward.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tinsmith.backend.model.score
from tests.datums import gspo_data, policy_data, top_k_data
from tests.losses import CASES
from tests.unit.test_shared_prompts import in_dtype
from tests.unit.test_trainer import PLAIN, are_equal, make_trainer, weights
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.score import score
from tinsmith.errors import TinsmithError

SETTINGS = LoraSettings(rank=4, alpha=32.0)
LENGTHS = (12, 12, 11, 9, 9, 8, 3, 2)
MESSAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError("Unable to allocate 4.00 GiB for an array"),
]


class SmallMemory:
    """Raises in the layers of a model for batches of more tokens than `max_tokens`; in
    the backward pass if `in_backward`, when later layers have got their gradient already."""

    def __init__(self, module: nn.Module, max_tokens: int, error: Exception, in_backward: bool):
        self.max_tokens, self.error, self.in_backward = max_tokens, error, in_backward
        self.num_failures = 0
        self.sizes: list[int] = []
        self._is_too_much = False
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.get_submodule("layers.0").register_forward_hook(self._after_first_layer)

    def _before(self, _: nn.Module, __: tuple, kwargs: dict[str, Tensor]) -> None:
        self.sizes.append(kwargs["input_ids"].numel())
        self._is_too_much = self.sizes[-1] > self.max_tokens
        if self._is_too_much and not self.in_backward:
            self._fail()

    def _after_first_layer(self, _: nn.Module, __: tuple, output: Tensor) -> None:
        if self._is_too_much and self.in_backward and output.requires_grad:
            output.register_hook(lambda _: self._fail())

    def _fail(self) -> None:
        self.num_failures += 1
        raise self.error


def scored(
    base: BaseModel,
    data: list[Datum],
    choice: LossChoice,
    memory: tuple[int, Exception, bool] | None = None,
    forward_only: bool = False,
    min_micro_batches: int = 1,
) -> tuple[Scored, dict[str, Tensor | None], SmallMemory | None]:
    module = attach_adapter(base, SETTINGS, seed=3)
    generator = torch.Generator().manual_seed(4)
    for _, a, b in lora_pairs(module):
        a.data = a.data.to(base.dtype)
        b.data = 0.02 * torch.randn(b.shape, generator=generator, dtype=base.dtype)
    small = None if memory is None else SmallMemory(backbone(module), *memory)
    result = score(module, data, choice, 64, forward_only, min_micro_batches=min_micro_batches)
    gradients = {
        f"{name}.{side}": parameter.grad
        for name, a, b in lora_pairs(module)
        for side, parameter in (("A", a), ("B", b))
    }
    return result, gradients, small


@pytest.fixture
def base64(base: BaseModel) -> Iterator[BaseModel]:
    """The base in float64, so that only a wrong sum can make a difference; put back afterwards."""
    with in_dtype(base, torch.float64):
        yield base


def assert_same(
    whole: Scored,
    parts: Scored,
    expected: dict[str, Tensor | None],
    found: dict[str, Tensor | None],
) -> None:
    """Loss, log-probabilities and gradients, to 1e-6 of each."""
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    for one, other in zip(whole.logprobs, parts.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    for name, gradient in expected.items():
        other = found[name]
        assert gradient is not None
        assert other is not None
        assert (other - gradient).norm() < 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_that_does_not_fit_is_halved_with_the_same_gradient(
    base64: BaseModel, case: str, in_backward: bool
):
    choice, make = CASES[case]
    data = make(0, LENGTHS)
    whole, expected, _ = scored(base64, data, choice)
    memory = (12, MESSAGES[0], in_backward)
    parts, found, small = scored(base64, data, choice, memory)
    assert small is not None
    assert small.num_failures >= 2
    assert max(small.sizes) == 64
    assert_same(whole, parts, expected, found)


@pytest.mark.parametrize(("asked", "number"), [(3, 3), (99, 8)])
@pytest.mark.parametrize("case", CASES)
def test_a_floor_of_micro_batches_is_kept_with_the_same_gradient(
    base64: BaseModel, case: str, asked: int, number: int
):
    choice, make = CASES[case]
    data = make(0, LENGTHS)
    enough = (64, MESSAGES[0], False)
    whole, expected, _ = scored(base64, data, choice)
    parts, found, memory = scored(base64, data, choice, enough, min_micro_batches=asked)
    assert memory is not None
    assert memory.num_failures == 0
    assert len(memory.sizes) == number
    assert_same(whole, parts, expected, found)


@pytest.mark.parametrize("error", MESSAGES, ids=["cuda", "cpu", "numpy"])
def test_every_way_to_say_that_memory_is_out_is_understood(
    base: BaseModel,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tinsmith.backend.model.score, "pays_to_merge", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        _, _, small = scored(
            base,
            policy_data(0, LENGTHS),
            CASES["ppo"][0],
            (36, error, False),
        )
    assert small is not None
    assert small.num_failures == 1
    assert "7 sequences of up to 12 tokens did not fit into memory together" in caplog.text
    assert "--token-budget below 64" in caplog.text


def test_another_error_is_not_taken_for_one_of_memory(base: BaseModel):
    broken = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        scored(
            base, policy_data(0, LENGTHS), LossChoice("importance_sampling"), (30, broken, False)
        )


def test_forward_only_is_split_as_well(base64: BaseModel):
    data = top_k_data(0, LENGTHS)
    choice = LossChoice("cross_entropy")
    whole, _, _ = scored(base64, data, choice, forward_only=True)
    parts, gradients, _ = scored(base64, data, choice, (12, MESSAGES[0], False), forward_only=True)
    assert all(gradient is None for gradient in gradients.values())
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.parametrize(("max_tokens", "fitting"), [(40, 37), (6, 6), (1, 1), (0, 0)])
def test_a_sequence_that_fits_not_even_alone_is_refused_with_a_length_that_does(
    base: BaseModel, max_tokens: int, fitting: int
):
    data = gspo_data(0, [3, 50])
    choice = CASES["gspo"][0]
    with pytest.raises(
        TinsmithError,
        match=rf"data\[1\]: the sequence of 50 tokens does not .* its last {fitting} tokens did",
    ):
        scored(base, data, choice, (max_tokens, MESSAGES[0], False))


def test_a_refused_sequence_leaves_the_gradient_of_earlier_requests(base: BaseModel):
    choice = LossChoice("importance_sampling")
    one, two = make_trainer(base), make_trainer(base)
    for trainer in (one, two):
        trainer.forward_backward(policy_data(0), choice, forward_only=False)
    SmallMemory(backbone(two._module), 20, MESSAGES[0], in_backward=True)
    with pytest.raises(TinsmithError, match="nothing was accumulated"):
        two.forward_backward(policy_data(1, [4, 30]), choice, forward_only=False)
    one.optim_step(PLAIN)
    two.optim_step(PLAIN)
    assert are_equal(weights(one), weights(two))
