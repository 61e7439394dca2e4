"""One truth for a token's log-probability: sampler, trainer, transformers, peft, and float64."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from tinker import types
from transformers import AutoModelForCausalLM

from tests.clients import (
    download,
    forward,
    make_datum,
    prompt_logprobs,
    random_tokens,
    sample,
    trained_client,
)
from tests.reference import Reference, read_adapter

TOLERANCE = 1e-5
MODELS = ("qwen3", "llama")


@dataclass(frozen=True, slots=True)
class Trained:
    """A run after a few steps, a sampler of its weights, and its adapter on the disk."""

    model_dir: Path
    trainer: tinker.TrainingClient
    sampler: tinker.SamplingClient
    adapter: Path

    def reference(self, tokens: list[int]) -> np.ndarray:
        pairs, scaling = read_adapter(self.adapter)
        model = Reference.load(self.model_dir)
        return model.logprobs(tokens[:-1], tokens[1:], pairs, scaling).detach().numpy()


@pytest.fixture(scope="module", params=[*MODELS, "vllm"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each model sampled by transformers, and one by vLLM."""
    if request.param == "vllm":
        service = request.getfixturevalue("vllm_service")
        model_dir = request.getfixturevalue("vllm_model_dir")
    else:
        service = request.getfixturevalue("service")
        model_dir = request.getfixturevalue("model_dirs")[request.param]
    trainer = trained_client(service, model_dir.name)
    sampler = trainer.save_weights_and_get_sampling_client().result()
    adapter = tmp_path_factory.mktemp("adapter")
    download(trainer.save_weights_external("final").result().path, adapter, service)
    return Trained(model_dir, trainer, sampler, adapter)


def plain_logprobs(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1].double()
    targets = torch.tensor(tokens[1:])[:, None]
    return logits.log_softmax(-1).gather(1, targets)[:, 0].numpy()


def agree(one: object, two: object) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(two), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [2, 7, 63, 64, 65, 300])
def test_sampler_trainer_peft_and_float64_agree_on_a_trained_adapter(trained: Trained, size: int):
    tokens = random_tokens(size, size)
    truth = trained.reference(tokens)
    agree(prompt_logprobs(trained.sampler, tokens), truth)
    agree(forward(trained.trainer, tokens), truth)
    plain = AutoModelForCausalLM.from_pretrained(trained.model_dir, dtype=torch.float32)
    agree(plain_logprobs(PeftModel.from_pretrained(plain, trained.adapter), tokens), truth)


def test_the_adapter_is_not_the_base_model(trained: Trained):
    tokens = random_tokens(0, 40)
    pairs, _ = read_adapter(trained.adapter)
    assert all(b.any() for _, b in pairs.values())
    base = Reference.load(trained.model_dir).logprobs(tokens[:-1], tokens[1:])
    assert np.abs(trained.reference(tokens) - base.numpy()).max() > 0.1


@pytest.mark.parametrize("model", MODELS)
def test_the_base_model_scores_as_plain_transformers_does(
    service: tinker.ServiceClient, model_dirs: dict[str, Path], model: str
):
    tokens = random_tokens(1, 100)
    sampler = service.create_sampling_client(base_model=model).result()
    fresh = service.create_lora_training_client(model, rank=8).result()
    plain = AutoModelForCausalLM.from_pretrained(model_dirs[model], dtype=torch.float32)
    truth = plain_logprobs(plain, tokens)
    agree(prompt_logprobs(sampler, tokens), truth)
    agree(forward(fresh, tokens), truth)


def test_logprobs_of_sampled_tokens_agree_with_trainer_and_float64(trained: Trained):
    prompt = random_tokens(2, 17)
    for sequence in sample(trained.sampler, prompt, 5, max_tokens=90, seed=1, stop=[]):
        assert sequence.logprobs is not None
        assert len(sequence.logprobs) == len(sequence.tokens) == 90
        tokens = [*prompt, *sequence.tokens]
        agree(sequence.logprobs, trained.reference(tokens)[len(prompt) - 1 :])
        agree(sequence.logprobs, forward(trained.trainer, tokens)[len(prompt) - 1 :])


def test_sampled_logprobs_are_those_of_the_tempered_and_truncated_distribution(trained: Trained):
    prompt = random_tokens(3, 9)
    temperature, top_k, top_p = 0.7, 20, 0.9
    pairs, scaling = read_adapter(trained.adapter)
    [sequence] = sample(
        trained.sampler, prompt,
        max_tokens=40, seed=3, stop=[], temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    tokens = [*prompt, *sequence.tokens]
    logits = Reference.load(trained.model_dir).logits(tokens[:-1], pairs, scaling).detach().numpy()
    expected = []
    for logits_V, token in zip(logits[len(prompt) - 1 :], sequence.tokens, strict=True):
        weights = np.exp((logits_V - logits_V.max()) / temperature)
        order = np.argsort(-weights)[:top_k]
        shares = weights[order] / weights[order].sum()
        kept = order[: 1 + int((np.cumsum(shares) < top_p).sum())]
        assert token in kept
        expected.append(np.log(weights[token] / weights[kept].sum()))
    agree(sequence.logprobs, expected)


def test_temperature_zero_is_transformers_greedy_search(trained: Trained):
    prompt = random_tokens(4, 12)
    plain = AutoModelForCausalLM.from_pretrained(trained.model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, trained.adapter)
    tokens = list(prompt)
    for _ in range(40):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    [one, two] = sample(trained.sampler, prompt, 2, max_tokens=40, temperature=0, stop=[])
    assert list(one.tokens) == list(two.tokens) == tokens[len(prompt) :]
    agree(one.logprobs, trained.reference(tokens)[len(prompt) - 1 :])


def test_training_scores_are_those_of_the_wire_whatever_surrounds_them(trained: Trained):
    sequences = [random_tokens(50 + i, size) for i, size in enumerate((40, 3, 120, 9, 9, 200))]
    output = trained.trainer.forward([make_datum(s) for s in sequences], "cross_entropy").result()
    for sequence, result in zip(sequences, output.loss_fn_outputs, strict=True):
        agree(result["logprobs"].tolist(), trained.reference(sequence))


def test_prompt_logprobs_last_n_are_the_last_of_all(trained: Trained):
    tokens = random_tokens(6, 30)
    every = prompt_logprobs(trained.sampler, tokens)
    prompt = types.ModelInput.from_ints(tokens)
    last = trained.sampler.compute_logprobs(prompt, prompt_logprobs_last_n=5).result()
    assert [value for value in last if value is not None] == pytest.approx(every[-5:], abs=1e-6)
