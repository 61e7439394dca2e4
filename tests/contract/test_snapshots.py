"""Sampling clients are snapshots; training runs on one base live side by side."""

import pickle

import pytest
import tinker
import torch
from tinker import types

from tests.clients import (
    forward,
    make_datum,
    prompt_logprobs,
    random_tokens,
    sample,
    train,
    trained_client,
)
from tinsmith.backend.sampling.pool import MAX_REPLICAS
from tinsmith.backend.sampling.snapshots import MAX_IN_MEMORY

TOKENS = random_tokens(0, 40)


def test_training_on_does_not_change_what_an_older_client_samples(
    each_service: tinker.ServiceClient,
):
    trainer = trained_client(each_service, "qwen3")
    old = trainer.save_weights_and_get_sampling_client().result()
    before = forward(trainer, TOKENS)
    drawn = [list(s.tokens) for s in sample(old, TOKENS, 3, max_tokens=20, seed=0)]
    train(trainer, 3, seed=5)
    new = trainer.save_weights_and_get_sampling_client().result()
    assert forward(trainer, TOKENS) != pytest.approx(before, abs=1e-2)
    assert prompt_logprobs(old, TOKENS) == pytest.approx(before, abs=1e-5)
    assert prompt_logprobs(new, TOKENS) == pytest.approx(forward(trainer, TOKENS), abs=1e-5)
    assert [list(s.tokens) for s in sample(old, TOKENS, 3, max_tokens=20, seed=0)] == drawn


def test_more_snapshots_than_stay_in_memory_all_sample_rightly(
    each_service: tinker.ServiceClient,
):
    trainer = trained_client(each_service, "qwen3", steps=1)
    snapshots, truths = [], []
    for step in range(MAX_IN_MEMORY + MAX_REPLICAS + 2):
        train(trainer, 1, seed=step)
        snapshots.append(trainer.save_weights_and_get_sampling_client().result())
        truths.append(forward(trainer, TOKENS))
    prompt = types.ModelInput.from_ints(TOKENS)
    for _ in range(2):
        found = [client.compute_logprobs(prompt) for client in reversed(snapshots)]  # all at once
        for future, truth in zip(found, reversed(truths), strict=True):
            assert future.result()[1:] == pytest.approx(truth, abs=1e-5)


def test_runs_of_several_ranks_and_flags_do_not_disturb_each_other(service: tinker.ServiceClient):
    def curve(client: tinker.TrainingClient, step: int) -> list[float]:
        train(client, 1, seed=step)
        return forward(client, TOKENS)

    alone = service.create_lora_training_client("qwen3", rank=4, seed=3).result()
    expected = [curve(alone, step) for step in range(3)]
    beside = service.create_lora_training_client("qwen3", rank=4, seed=3).result()
    others = [
        service.create_lora_training_client("qwen3", rank=16, seed=4, train_mlp=False).result(),
        service.create_lora_training_client("qwen3", rank=1, seed=5, train_unembed=False).result(),
        service.create_lora_training_client("qwen3", rank=2, train_attn=False).result(),
    ]
    found = []
    for step in range(3):
        for other in others:
            train(other, 1, seed=50 + step)
        found.append(curve(beside, step))
    assert found == expected


def test_the_seed_of_a_client_decides_its_course(service: tinker.ServiceClient):
    one, two, other = (
        forward(trained_client(service, "llama", seed=seed), TOKENS) for seed in (1, 1, 2)
    )
    assert one == two
    assert one != pytest.approx(other, abs=1e-3)


def test_a_client_tells_of_its_run_and_has_the_models_tokenizer(
    service: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    client = service.create_lora_training_client("qwen3", rank=6).result()
    info = client.get_info()
    assert (info.model_data.model_name, info.lora_rank, info.is_lora) == ("qwen3", 6, True)
    monkeypatch.chdir(tmp_path)
    tokenizer = client.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("12 + 7 = 19")) == "12 + 7 = 19"
    messages = [{"role": "user", "content": "2 + 3"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert str(prompt).endswith("<|im_start|>assistant\n")


def test_a_sampling_client_works_after_pickling(service: tinker.ServiceClient):
    client = trained_client(service, "qwen3").save_weights_and_get_sampling_client().result()
    copy = pickle.loads(pickle.dumps(client))
    assert prompt_logprobs(copy, TOKENS) == pytest.approx(prompt_logprobs(client, TOKENS), abs=1e-5)


def test_a_custom_loss_has_the_gradient_that_the_client_computes(service: tinker.ServiceClient):
    """The client scores, differentiates, and sends the gradient back as negative weights."""

    def squares(data: list[types.Datum], logprobs: list) -> tuple:
        loss = torch.stack([(values**2).sum() for values in logprobs]).sum()
        return loss, {"squares": float(loss.detach())}

    one, two = (service.create_lora_training_client("llama", rank=4, seed=1) for _ in range(2))
    one, two = one.result(), two.result()
    data = [make_datum(TOKENS)]
    logprobs = forward(two, TOKENS)
    result = one.forward_backward_custom(data, squares).result()
    assert result.metrics["squares"] == pytest.approx(sum(p**2 for p in logprobs), rel=1e-4)
    weights = [-2 * p for p in logprobs]
    two.forward_backward([make_datum(TOKENS, weights)], "cross_entropy").result()
    adam = types.AdamParams(learning_rate=1e-2, eps=1e-2)
    norms = [client.optim_step(adam).result().metrics for client in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert forward(one, TOKENS) == pytest.approx(forward(two, TOKENS), abs=1e-5)
