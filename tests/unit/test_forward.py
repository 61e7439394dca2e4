"""Log-probabilities, losses and LoRA gradients against a float64 reference of our own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.datums import cross_entropy_data, policy_data
from tests.losses import CASES, reference_loss
from tests.reference import Reference, trainable
from tinsmith.backend.model import forward
from tinsmith.backend.model.adapter import LoraSettings, attach_adapter, lora_pairs
from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.forward import Scored, micro_batches
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.score import score
from tinsmith.objectives.losses import LOSSES

SETTINGS = LoraSettings(rank=4, alpha=32.0)
CROSS_ENTROPY = LossChoice("cross_entropy")
IMPORTANCE_SAMPLING = LossChoice("importance_sampling")
Gradients = dict[str, torch.Tensor]


def adapted(base: BaseModel) -> PreTrainedModel:
    """The base with an adapter whose B is not zero, as after some training."""
    module = attach_adapter(base, SETTINGS, seed=3)
    generator = torch.Generator().manual_seed(4)
    for _, _, b in lora_pairs(module):
        b.data = 0.02 * torch.randn(b.shape, generator=generator)
    return module


def scored_with_gradients(
    base: BaseModel, data: Sequence[Datum], choice: LossChoice, token_budget: int
) -> tuple[Scored, Gradients]:
    module = adapted(base)
    scored = score(module, data, choice, token_budget, forward_only=False)
    return scored, gradients(module)


def gradients(module: PreTrainedModel) -> Gradients:
    return {
        f"{name}.{side}": torch.zeros_like(p) if p.grad is None else p.grad
        for name, a, b in lora_pairs(module)
        for side, p in (("A", a), ("B", b))
    }


def size_of_terms(scored: Scored, data: Sequence[Datum]) -> float:
    """What a rounding error of the loss is relative to: its terms may cancel."""
    coefficients = [d.loss_inputs.get("weights", d.loss_inputs.get("advantages")) for d in data]
    return sum(
        float(np.abs(c * p).sum()) for c, p in zip(coefficients, scored.logprobs, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_logprobs_and_lora_gradients_agree_with_a_float64_reference(
    base: BaseModel, case: str
):
    choice, make = CASES[case]
    data = make(seed=0)
    scored, ours = scored_with_gradients(base, data, choice, token_budget=8192)
    reference = Reference.load(Path(base.source))
    pairs = trainable({name: (a, b) for name, a, b in lora_pairs(adapted(base))})
    logprobs = [
        reference.logits(d.tokens.tolist(), pairs, SETTINGS.scaling)
        .log_softmax(-1)
        .gather(1, torch.from_numpy(d.target_tokens.reshape(len(d.tokens), -1)))
        .view(d.target_tokens.shape)
        for d in data
    ]
    total = torch.stack(
        [
            reference_loss(
                choice, p, {k: torch.from_numpy(v).double() for k, v in d.loss_inputs.items()}
            )
            for p, d in zip(logprobs, data, strict=True)
        ]
    ).sum()
    total.backward()

    assert scored.loss == pytest.approx(float(total.detach()), rel=1e-5)
    for mine, theirs in zip(scored.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=0, atol=1e-5)
    assert len(ours) == 2 * len(pairs) == 2 * (7 * 2 + 1)
    for name, (a, b) in pairs.items():
        for side, leaf in (("A", a), ("B", b)):
            assert leaf.grad is not None
            error = (ours[f"{name}.{side}"] - leaf.grad).norm() / leaf.grad.norm()
            assert error < 1e-5, f"{name}.{side}: relative error {error:.2e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("token_budget", [1, 20, 64])
def test_micro_batching_changes_nothing(base: BaseModel, case: str, token_budget: int):
    choice, make = CASES[case]
    data = make(seed=1)
    whole, whole_gradients = scored_with_gradients(base, data, choice, token_budget=100_000)
    parts, parts_gradients = scored_with_gradients(base, data, choice, token_budget)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6 * size_of_terms(whole, data))
    for one, other in zip(whole.logprobs, parts.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    for name, gradient in whole_gradients.items():
        error = (parts_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-6, f"{name}: relative difference {error:.2e}"


def test_neighbours_in_a_batch_change_nothing(base: BaseModel):
    data = cross_entropy_data(seed=2)
    alone, _ = scored_with_gradients(base, [data[3]], CROSS_ENTROPY, 8192)
    for others in ([data[4], data[3], data[0]], [data[3], data[4]], [data[1], data[3]]):
        together, _ = scored_with_gradients(base, others, CROSS_ENTROPY, 8192)
        [place] = [i for i, datum in enumerate(others) if datum is data[3]]
        np.testing.assert_allclose(
            together.logprobs[place], alone.logprobs[0], rtol=1e-6, atol=1e-6
        )


def test_a_later_token_has_no_say_in_an_earlier_log_probability(base: BaseModel):
    [datum] = cross_entropy_data(seed=3, lengths=[12])
    changed = datum.tokens.copy()
    changed[7:] = (changed[7:] + 1) % 400
    other = Datum(changed, datum.target_tokens, datum.loss_inputs)
    one, _ = scored_with_gradients(base, [datum], CROSS_ENTROPY, 8192)
    two, _ = scored_with_gradients(base, [other], CROSS_ENTROPY, 8192)
    np.testing.assert_allclose(one.logprobs[0][:7], two.logprobs[0][:7], rtol=1e-6, atol=1e-6)
    assert np.abs(one.logprobs[0][7:] - two.logprobs[0][7:]).max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_logits_come_in_blocks_of_bounded_size_with_the_same_results(
    base: BaseModel, case: str, monkeypatch: pytest.MonkeyPatch
):
    choice, make = CASES[case]
    data = make(seed=4)
    whole, whole_gradients = scored_with_gradients(base, data, choice, 8192)
    sizes = []
    real = forward.unembed

    def watched(module: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
        logits_NV = real(module, hidden_ND)
        sizes.append(logits_NV.numel())
        return logits_NV

    monkeypatch.setattr(forward, "unembed", watched)
    monkeypatch.setitem(forward.MAX_LOGITS, "cpu", 7 * base.vocabulary_size)
    parts, parts_gradients = scored_with_gradients(base, data, choice, 8192)
    assert 7 * base.vocabulary_size == max(sizes)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-6 * size_of_terms(whole, data))
    for one, other in zip(whole.logprobs, parts.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    for name, gradient in whole_gradients.items():
        assert (parts_gradients[name] - gradient).norm() / gradient.norm() < 1e-6, name


def test_forward_only_scores_the_same_and_makes_no_gradient(base: BaseModel):
    data = policy_data(seed=5)
    module = adapted(base)
    only = score(module, data, IMPORTANCE_SAMPLING, 64, forward_only=True)
    assert all(p.grad is None for _, a, b in lora_pairs(module) for p in (a, b))
    trained = score(module, data, IMPORTANCE_SAMPLING, 64, forward_only=False)
    assert only.loss == pytest.approx(trained.loss, rel=1e-6)


def test_tokens_of_weight_zero_are_scored_but_leave_no_gradient(base: BaseModel):
    [datum] = cross_entropy_data(seed=6, lengths=[9])
    masked = Datum(datum.tokens, datum.target_tokens, {"weights": np.zeros(9, np.float32)})
    scored, ours = scored_with_gradients(base, [masked], CROSS_ENTROPY, 8192)
    full, _ = scored_with_gradients(base, [datum], CROSS_ENTROPY, 8192)
    assert scored.loss == 0
    np.testing.assert_allclose(scored.logprobs[0], full.logprobs[0], rtol=1e-6, atol=1e-6)
    assert all(not gradient.any() for gradient in ours.values())


def test_sequences_without_weight_or_advantage_go_forward_only(base: BaseModel):
    data = policy_data(seed=8, lengths=[9, 12, 10, 11])
    for datum in (data[1], data[2]):
        datum.loss_inputs["advantages"][:] = 0
    module = adapted(base)
    seen: list[tuple[int, bool]] = []
    backbone(module).register_forward_hook(
        lambda _, __, output: seen.append(
            (output.last_hidden_state.shape[1], output.last_hidden_state.requires_grad)
        )
    )
    found = score(module, data, IMPORTANCE_SAMPLING, 8192, forward_only=False)
    assert seen == [(9 + 11, True), (12 + 10, False)]
    only, expected = scored_with_gradients(base, [data[0], data[3]], IMPORTANCE_SAMPLING, 8192)
    assert found.loss == pytest.approx(only.loss, rel=1e-6)
    for name, gradient in gradients(module).items():
        assert torch.equal(gradient, expected[name]), name
    alone = score(module, data, IMPORTANCE_SAMPLING, 8192, forward_only=True)
    for one, other in zip(alone.logprobs, found.logprobs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_every_loss_is_compared_with_the_reference():
    assert {choice.name for choice, _ in CASES.values()} == set(LOSSES)


def test_micro_batches_hold_every_row_once_within_the_budget_longest_first():
    lengths = [3, 50, 7, 7, 1, 20, 7, 2]
    batches = list(micro_batches(lengths, token_budget=21))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= 21 or len(batch) == 1
    assert batches[0] == [1]
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)
