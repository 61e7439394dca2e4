"""Settings of a server that the wire lacks: the real SDK against servers that have them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinker import types
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.clients import forward, make_datum, random_tokens, sample, train
from tests.in_process import serving
from tinsmith.backend.model.base_model import BaseModel

PROMPT = random_tokens(0, 12)


def test_with_min_p_the_tokens_and_log_probabilities_are_those_of_the_filtered_distribution(
    qwen3_dir: Path, tmp_path: Path, bases: dict[str, BaseModel]
):
    temperature, min_p = 0.8, 0.4
    with serving(qwen3_dir, tmp_path, min_p=min_p) as served, served.client() as service:
        sampler = service.create_sampling_client(base_model="qwen3").result()
        found = sample(sampler, PROMPT, 256, max_tokens=1, temperature=temperature, stop=[])
    assert_drawn_with_min_p(found, bases["qwen3"], PROMPT, temperature, min_p)


def assert_drawn_with_min_p(
    found: list[types.SampledSequence],
    base: BaseModel,
    prompt: list[int],
    temperature: float,
    min_p: float,
) -> None:
    """Tokens likely enough, with the log-probabilities of the distribution that is left."""
    with torch.no_grad():
        logits_V = base.module(torch.tensor([prompt])).logits[0, -1].double().numpy()
    p_V = np.exp((logits_V - logits_V.max()) / temperature)
    kept_V = p_V >= min_p
    logprobs_V = np.log(p_V / p_V[kept_V].sum())
    assert 1 < kept_V.sum() < len(p_V) / 2
    for sequence in found:
        [token] = sequence.tokens
        assert kept_V[token]
        assert sequence.logprobs is not None
        assert abs(sequence.logprobs[0] - logprobs_V[token]) <= 1e-5


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a program gets whose requests bring no seeds: completions of the base model, two of one
    session and one of another, and log-probabilities of an adapter of its own after a step."""

    first: list[int]
    second: list[int]
    elsewhere: list[int]
    adapter: list[float]


def draw(model: Path, store: Path, seed: int | None) -> Drawn:
    asked: dict[str, Any] = {"max_tokens": 16, "stop": []}
    with serving(model, store, seed=seed) as served, served.client() as one, served.client() as two:
        base = one.create_sampling_client(base_model="qwen3").result()
        first, second = (sample(base, PROMPT, **asked)[0].tokens for _ in range(2))
        training = one.create_lora_training_client("qwen3", rank=4).result()
        train(training, 1)
        other = two.create_sampling_client(base_model="qwen3").result()
        elsewhere = sample(other, PROMPT, **asked)[0].tokens
        return Drawn(list(first), list(second), list(elsewhere), forward(training, PROMPT))


def test_a_servers_seed_repeats_what_a_program_without_seeds_gets(qwen3_dir: Path, tmp_path: Path):
    once, again = (draw(qwen3_dir, tmp_path / name, seed=7) for name in ("once", "again"))
    assert once == again
    assert once.first != once.second
    assert once.first != once.elsewhere
    changed = draw(qwen3_dir, tmp_path / "changed", seed=8)
    assert changed.first != once.first
    assert changed.adapter != once.adapter


def test_without_a_seed_nothing_is_repeated(qwen3_dir: Path, tmp_path: Path):
    once, again = (draw(qwen3_dir, tmp_path / name, seed=None) for name in ("once", "again"))
    assert once.first != again.first
    assert once.adapter != again.adapter


def test_a_seed_of_the_request_wins_over_the_servers(qwen3_dir: Path, tmp_path: Path):
    found: list[list[int]] = []
    for seed in (None, 7):
        store = tmp_path / str(seed)
        with serving(qwen3_dir, store, seed=seed) as served, served.client() as service:
            sampler = service.create_sampling_client(base_model="qwen3").result()
            [sequence] = sample(sampler, PROMPT, max_tokens=16, stop=[], seed=3)
            found.append(list(sequence.tokens))
    assert found[0] == found[1]


def test_a_forward_backward_is_cut_into_the_micro_batches_that_the_server_asks_for(
    qwen3_dir: Path, tmp_path: Path
):
    sizes: list[int] = []

    def count(module: torch.nn.Module, inputs: object) -> None:
        if type(module).__name__ == "Qwen3Model":
            sizes.append(1)

    data = [make_datum(random_tokens(i, 10)) for i in range(5)]
    with serving(qwen3_dir, tmp_path, grad_accum_steps=4) as served, served.client() as service:
        training = service.create_lora_training_client("qwen3", rank=4).result()
        hook = register_module_forward_pre_hook(count)
        training.forward_backward(data, "cross_entropy").result()
        hook.remove()
    assert len(sizes) == 4
