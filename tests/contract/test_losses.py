"""Every loss through the real SDK: value, outputs and the LoRA gradient of a float64 reference."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
import zstandard
from tinker import types

from tests.clients import (
    download,
    forward,
    make_datum,
    random_tokens,
    trained_client,
)
from tests.losses import CISPO, GSPO, PPO, reference_loss
from tests.reference import Reference, read_adapter, trainable
from tinsmith.backend.model.loss_choice import LossChoice

LENGTHS = (9, 40, 2, 120, 40)
SEQUENCES = [random_tokens(50 + i, size) for i, size in enumerate(LENGTHS)]
# W - 1e3 g: from the weights before and after such a step the gradient can be read.
GRADIENT_STEP = types.AdamParams(learning_rate=1e9, beta1=0.0, beta2=0.0, eps=1e6)
STEP_PER_GRADIENT = 1e3
Gradients = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Trained:
    """The saved state of a run after a few steps, its adapter, and what it gives to SEQUENCES."""

    service: tinker.ServiceClient
    state: str
    adapter: Path
    logprobs: list[np.ndarray]
    model: Reference

    def client(self) -> tinker.TrainingClient:
        return self.service.create_training_client_from_state(self.state).result()


@pytest.fixture(scope="module")
def trained(
    service: tinker.ServiceClient, qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    client = trained_client(service, "qwen3")
    state = client.save_state("losses").result().path
    adapter = download(
        client.save_weights_external("losses").result().path, tmp_path_factory.mktemp("adapter")
    )
    logprobs = [np.array(forward(client, tokens)) for tokens in SEQUENCES]
    return Trained(service, state, adapter, logprobs, Reference.load(qwen3_dir))


def cross_entropy_data(trained: Trained) -> list[types.Datum]:
    random = np.random.default_rng(1)
    return [make_datum(s, random.normal(size=len(s) - 1).tolist()) for s in SEQUENCES]


def policy_data(trained: Trained) -> list[types.Datum]:
    """Rollouts of a sampler that has drifted: ratios on both sides of every bound, advantages of
    both signs and, as on prompts, zero."""
    random = np.random.default_rng(2)
    data = []
    for tokens, ours in zip(SEQUENCES, trained.logprobs, strict=True):
        size = len(tokens) - 1
        drift = random.normal(size=size) * 0.4 + random.normal() * 0.4
        advantages = random.normal(size=size) * (np.arange(size) >= size // 4)
        inputs = {"target_tokens": tokens[1:], "logprobs": (ours + drift).tolist()}
        data.append(_datum(tokens, inputs | {"advantages": advantages.tolist()}))
    return data


def gspo_data(trained: Trained) -> list[types.Datum]:
    return [
        types.Datum(
            model_input=datum.model_input,
            loss_fn_inputs={
                **datum.loss_fn_inputs,
                "sequence_ratio_mask": types.TensorData.from_numpy(
                    (np.array(datum.loss_fn_inputs["advantages"].data) != 0).astype(np.float32)
                ),
            },
        )
        for datum in policy_data(trained)
    ]


def dense_top_k_data(trained: Trained) -> list[types.Datum]:
    """Top-k distillation: K targets a token, teacher probabilities as weights."""
    random = np.random.default_rng(3)
    data = []
    for tokens in SEQUENCES:
        targets = random.integers(0, 400, (len(tokens) - 1, 5))
        weights = random.dirichlet(np.ones(5), len(tokens) - 1)
        inputs = {"target_tokens": targets, "weights": weights.astype(np.float32)}
        data.append(_datum(tokens, inputs))
    return data


def sparse_top_k_data(trained: Trained) -> list[types.Datum]:
    """As recipes send it: rows without a teacher are zero, which makes the tensors sparse."""
    data = []
    for datum in dense_top_k_data(trained):
        tensors = {key: value.to_torch() for key, value in datum.loss_fn_inputs.items()}
        has_teacher = torch.arange(len(tensors["weights"])) % 4 == 1
        inputs = {key: value * has_teacher[:, None] for key, value in tensors.items()}
        data.append(types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))  # pyright: ignore[reportArgumentType]
    assert data[1].loss_fn_inputs["target_tokens"].sparse_crow_indices is not None
    assert data[1].loss_fn_inputs["weights"].sparse_crow_indices is not None
    return data


def _datum(tokens: list[int], inputs: dict[str, object]) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs=inputs,  # pyright: ignore[reportArgumentType] lists become tensors
    )


CASES: dict[str, tuple[LossChoice, Callable[[Trained], list[types.Datum]]]] = {
    "cross_entropy": (LossChoice("cross_entropy"), cross_entropy_data),
    "cross_entropy, dense targets": (LossChoice("cross_entropy"), dense_top_k_data),
    "cross_entropy, sparse targets": (LossChoice("cross_entropy"), sparse_top_k_data),
    "importance_sampling": (LossChoice("importance_sampling"), policy_data),
    "ppo": (LossChoice("ppo", PPO), policy_data),
    "cispo": (LossChoice("cispo", CISPO), policy_data),
    "dro": (LossChoice("dro", {"beta": 0.05}), policy_data),
    "gspo": (LossChoice("gspo", GSPO), gspo_data),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_logprobs_and_gradient_are_those_of_a_float64_reference(
    trained: Trained, tmp_path: Path, case: str
):
    choice, make = CASES[case]
    data = make(trained)
    client = trained.client()
    settings = dict(choice.settings) or None
    output = client.forward_backward(data, choice.name, settings).result()  # pyright: ignore[reportArgumentType]
    client.optim_step(GRADIENT_STEP).result()
    after, _ = read_adapter(download(client.save_weights_external("after").result().path, tmp_path))
    expected_loss, expected_logprobs, gradients = reference(trained, choice, data)

    assert output.metrics["loss:sum"] == pytest.approx(expected_loss, rel=1e-4)
    for found, truth in zip(output.loss_fn_outputs, expected_logprobs, strict=True):
        assert list(truth.shape) == found["logprobs"].shape
        np.testing.assert_allclose(found["logprobs"].to_numpy(), truth, rtol=0, atol=1e-5)
    before, _ = read_adapter(trained.adapter)
    for name, truths in gradients.items():
        for old, new, truth in zip(before[name], after[name], truths, strict=True):
            found = (old - new) / STEP_PER_GRADIENT
            assert (found - truth).norm() < 1e-4 * truth.norm(), name


def reference(
    trained: Trained, choice: LossChoice, data: list[types.Datum]
) -> tuple[float, list[np.ndarray], Gradients]:
    """Loss, log-probabilities of the targets, and gradient of (A, B) by layer."""
    frozen, scaling = read_adapter(trained.adapter)
    pairs = trainable(frozen)
    losses, logprobs = [], []
    for datum in data:
        inputs = {name: tensor.to_torch() for name, tensor in datum.loss_fn_inputs.items()}
        targets = inputs.pop("target_tokens")
        logits = trained.model.logits(datum.model_input.to_ints(), pairs, scaling)
        p = logits.log_softmax(-1).gather(1, targets.reshape(len(targets), -1)).view(targets.shape)
        losses.append(reference_loss(choice, p, {k: v.double() for k, v in inputs.items()}))
        logprobs.append(p.detach().numpy())
    total = torch.stack(losses).sum()
    total.backward()
    gradients = {name: (a.grad, b.grad) for name, (a, b) in pairs.items()}
    return float(total.detach()), logprobs, gradients  # pyright: ignore[reportReturnType]


def loss_sum(
    trained: Trained, loss: types.LossFnType, config: dict[str, float | str] | None = None
) -> float:
    output = trained.client().forward(policy_data(trained), loss, config).result()
    return output.metrics["loss:sum"]


def test_without_a_config_the_published_defaults_hold(trained: Trained):
    assert loss_sum(trained, "ppo") == loss_sum(
        trained, "ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    )
    assert loss_sum(trained, "ppo") != loss_sum(trained, "ppo", {"clip_high_threshold": 1.3})
    assert loss_sum(trained, "cispo") == loss_sum(
        trained, "cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
    )


def test_one_request_may_mix_datums_with_one_and_with_several_targets_a_token(trained: Trained):
    one, five = cross_entropy_data(trained), dense_top_k_data(trained)
    data = [one[0], five[0], five[1], one[1]]
    mixed = trained.client().forward(data, "cross_entropy").result()
    apart = [trained.client().forward([datum], "cross_entropy").result() for datum in data]
    shapes = [output["logprobs"].shape for output in mixed.loss_fn_outputs]
    assert shapes == [[8], [8, 5], [39, 5], [39]]
    for found, alone in zip(mixed.loss_fn_outputs, apart, strict=True):
        np.testing.assert_allclose(
            found["logprobs"].to_numpy(), alone.loss_fn_outputs[0]["logprobs"].to_numpy(), atol=1e-5
        )
    total = sum(output.metrics["loss:sum"] for output in apart)
    assert mixed.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_provenance_spans_change_nothing(trained: Trained):
    def spans(size: int) -> list[types.PromptProvenanceSpan | types.SampledProvenanceSpan]:
        return [
            types.PromptProvenanceSpan(sequence_id="a:0", length=1),
            types.SampledProvenanceSpan(sequence_id="a:0", length=size - 1),
        ]

    data = policy_data(trained)
    spanned = [
        datum.with_provenance(spans(datum.model_input.length), spans(datum.model_input.length))
        for datum in data
    ]
    client = trained.client()
    plain = client.forward(data, "ppo").result()
    assert client.forward(spanned, "ppo").result().metrics == plain.metrics


def test_a_custom_loss_on_several_targets_a_token_trains(trained: Trained):
    """It is computed on the client, and comes back as weights of a cross_entropy."""
    data = dense_top_k_data(trained)

    def squares(data: list[types.Datum], logprobs: list[torch.Tensor]):
        loss = torch.stack([(p**2).mean() for p in logprobs]).sum()
        return loss, {"squares": float(loss.detach())}

    client = trained.client()
    first = client.forward_backward_custom(data, squares).result().metrics["loss:sum"]
    client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    second = client.forward_backward_custom(data, squares).result().metrics["loss:sum"]
    assert second < first


def test_compressed_requests_are_read(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    compress = zstandard.ZstdCompressor
    compressions: list[object] = []

    def watched() -> zstandard.ZstdCompressor:
        compressions.append(None)
        return compress()

    monkeypatch.setattr(zstandard, "ZstdCompressor", watched)
    client = trained.client()
    plain = client.forward(cross_entropy_data(trained), "cross_entropy").result()
    assert not compressions
    monkeypatch.setitem(vars(client.holder.get_client_config()), "proto_compress_fwdbwd", True)
    packed = client.forward(cross_entropy_data(trained), "cross_entropy").result()
    assert compressions
    assert packed.metrics == plain.metrics
