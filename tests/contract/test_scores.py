"""Log-probabilities beside those of the sampled tokens: top-k, chosen tokens, alternatives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.clients import Params, random_tokens
from tests.reference import Reference

PROMPT = random_tokens(3, 40)
SIZE = len(PROMPT)
GREEDY = Params(max_tokens=1, temperature=0.0)


@pytest.fixture(scope="module", params=["qwen3", "llama", "vllm"])
def model_dir(request: pytest.FixtureRequest) -> Path:
    """The model that is sampled from: by the transformers sampler, or by vLLM."""
    if request.param == "vllm":
        return request.getfixturevalue("vllm_model_dir")
    return request.getfixturevalue("model_dirs")[request.param]


@pytest.fixture(scope="module")
def sampler(request: pytest.FixtureRequest, model_dir: Path) -> tinker.SamplingClient:
    by_vllm = model_dir == request.getfixturevalue("vllm_model_dir")
    service = request.getfixturevalue("vllm_service" if by_vllm else "service")
    return service.create_sampling_client(base_model=model_dir.name).result()


@pytest.fixture(scope="module")
def logprobs_TV(model_dir: Path) -> np.ndarray:
    """Row t: log-probabilities of what follows the first t + 1 tokens of the prompt, float64."""
    return Reference.load(model_dir).logits(PROMPT).log_softmax(-1).numpy()


def ask(sampler: tinker.SamplingClient, params: Params = GREEDY, **extra: Any):
    prompt = types.ModelInput.from_ints(PROMPT)
    return sampler.sample(
        prompt, **({"num_samples": 1, "sampling_params": params} | extra)
    ).result()  # fmt: skip


def assert_top(found: list[tuple[int, float]] | None, logprobs_V: np.ndarray, k: int) -> None:
    """`found` are the k likeliest tokens, likeliest first."""
    order = np.argsort(-logprobs_V)[:k]
    assert found is not None
    tokens, values = [token for token, _ in found], [value for _, value in found]
    assert values == pytest.approx(logprobs_V[order], abs=1e-5)
    # Tokens that differ by less than a float32 can tell may change places.
    assert values == pytest.approx(logprobs_V[tokens], abs=1e-5)
    assert len(set(tokens)) == k


@pytest.mark.parametrize("k", [1, 5, 400])
def test_topk_prompt_logprobs_are_the_models_likeliest_tokens_at_each_position(
    sampler: tinker.SamplingClient, logprobs_TV: np.ndarray, k: int
):
    answer = ask(sampler, topk_prompt_logprobs=k)
    assert answer.topk_prompt_logprobs is not None
    assert answer.prompt_logprobs is None
    assert len(answer.topk_prompt_logprobs) == SIZE
    assert answer.topk_prompt_logprobs[0] is None
    for place in range(1, SIZE):
        assert_top(answer.topk_prompt_logprobs[place], logprobs_TV[place - 1], k)


@pytest.mark.parametrize("last_n", [1, 7, SIZE - 1])
def test_last_n_scores_the_end_of_the_prompt_and_leaves_the_rest_empty(
    sampler: tinker.SamplingClient, logprobs_TV: np.ndarray, last_n: int
):
    answer = ask(
        sampler, include_prompt_logprobs=True, prompt_logprobs_last_n=last_n,
        topk_prompt_logprobs=3,
    )  # fmt: skip
    assert answer.prompt_logprobs is not None
    assert answer.topk_prompt_logprobs is not None
    assert answer.prompt_logprobs[:-last_n] == [None] * (SIZE - last_n)
    assert answer.topk_prompt_logprobs[:-last_n] == [None] * (SIZE - last_n)
    expected = [logprobs_TV[t - 1, PROMPT[t]] for t in range(SIZE - last_n, SIZE)]
    assert answer.prompt_logprobs[-last_n:] == pytest.approx(expected, abs=1e-5)
    for place in range(SIZE - last_n, SIZE):
        assert_top(answer.topk_prompt_logprobs[place], logprobs_TV[place - 1], 3)
    alone = sampler.compute_logprobs(types.ModelInput.from_ints(PROMPT), last_n).result()
    assert alone == answer.prompt_logprobs


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_target_prompt_logprobs_score_the_named_tokens_in_the_shape_they_came_in(
    sampler: tinker.SamplingClient, logprobs_TV: np.ndarray, layout: str
):
    random = np.random.default_rng(0)
    shape = (SIZE - 1, 6)
    ids = torch.from_numpy(random.integers(0, 400, shape))
    ids[torch.from_numpy(random.random(shape) < (0.9 if layout == "sparse" else 0.3))] = -1
    ids[:2] = -1
    ids[2, 1], ids[-1, 0] = 0, 399
    make = types.TensorData.from_torch
    if layout == "sparse":
        make = lambda ids: types.TensorData.from_torch_sparse(ids, pad_value=-1)  # noqa: E731
    target = make(ids)
    assert (target.sparse_crow_indices is not None) == (layout == "sparse")
    answer = ask(sampler, target_prompt_logprobs=target)
    found = answer.target_prompt_logprobs
    assert found is not None
    assert found.dtype == "float32"
    assert list(found.shape or []) == list(shape)
    assert found.sparse_crow_indices == target.sparse_crow_indices
    expected = np.take_along_axis(logprobs_TV[:-1], ids.clamp(min=0).numpy(), axis=1)
    expected[ids.numpy() == -1] = 0.0
    assert found.to_numpy() == pytest.approx(expected, abs=1e-5)


def test_targets_ignore_last_n(sampler: tinker.SamplingClient, logprobs_TV: np.ndarray):
    ids = torch.full((SIZE - 1, 1), -1)
    ids[0, 0] = 7
    answer = ask(
        sampler, include_prompt_logprobs=True, prompt_logprobs_last_n=1,
        target_prompt_logprobs=types.TensorData.from_torch(ids),
    )  # fmt: skip
    assert answer.target_prompt_logprobs is not None
    assert answer.target_prompt_logprobs.to_numpy()[0, 0] == pytest.approx(
        logprobs_TV[0, 7], abs=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_alternatives_to_prompt_tokens_follow_the_tempered_distribution(
    sampler: tinker.SamplingClient, logprobs_TV: np.ndarray, temperature: float
):
    """Each frequency of 4,000 draws is within five standard errors and three draws of p."""
    k = 4000
    params = Params(max_tokens=1, seed=1, temperature=temperature)
    found = ask(sampler, params, prompt_alt_tokens_k=k).prompt_alt_tokens
    assert found is not None
    tokens, logprobs = found.tokens.to_numpy(), found.logprobs.to_numpy()
    assert tokens.shape == logprobs.shape == (SIZE - 1, k)
    assert logprobs == pytest.approx(np.take_along_axis(logprobs_TV[:-1], tokens, 1), abs=1e-5)
    tempered = torch.from_numpy(logprobs_TV[:-1] / temperature).softmax(-1).numpy()
    for row, p in zip(tokens, tempered, strict=True):
        frequency = np.bincount(row, minlength=400) / k
        assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / k) + 3 / k).all()
    assert not (tokens[:, :-1] == tokens[:, 1:]).all(axis=0).any(), "draws are independent"


def test_alternatives_come_from_the_seed_and_change_no_completion(sampler: tinker.SamplingClient):
    params = Params(max_tokens=5, seed=3, stop=[])
    bare = ask(sampler, params, num_samples=2)
    one, two = (ask(sampler, params, num_samples=2, prompt_alt_tokens_k=4) for _ in range(2))
    assert one.prompt_alt_tokens is not None
    assert two.prompt_alt_tokens is not None
    assert (
        one.prompt_alt_tokens.tokens.to_numpy() == two.prompt_alt_tokens.tokens.to_numpy()
    ).all()
    assert [s.tokens for s in bare.sequences] == [s.tokens for s in one.sequences]


def test_at_temperature_zero_the_alternative_is_the_likeliest_token(
    sampler: tinker.SamplingClient, logprobs_TV: np.ndarray
):
    found = ask(sampler, prompt_alt_tokens_k=2).prompt_alt_tokens
    assert found is not None
    expected = logprobs_TV[:-1].argmax(1)[:, None].repeat(2, axis=1)
    assert (found.tokens.to_numpy() == expected).all()


SETTINGS: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3},
    {"top_p": 0.6, "temperature": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_topk_sample_logprobs_are_of_the_distribution_sampled_from(
    sampler: tinker.SamplingClient,
    model_dir: Path,
    settings: dict[str, Any],
):
    k = 5
    params = Params(max_tokens=4, seed=2, stop=[], **settings)
    answer = ask(sampler, params, num_samples=2, topk_sample_logprobs=k)
    reference = Reference.load(model_dir)
    for sequence in answer.sequences:
        assert sequence.topk_logprobs is not None
        assert sequence.logprobs is not None
        for place, row in enumerate(sequence.topk_logprobs):
            logits_V = reference.logits([*PROMPT, *sequence.tokens[:place]])[-1]
            truth_V = truncated(logits_V, settings)
            assert_top(row, truth_V, min(k, int((truth_V > -np.inf).sum())))
            own = dict(row or []).get(sequence.tokens[place])
            assert own is None or own == sequence.logprobs[place]


def truncated(logits_V: torch.Tensor, settings: dict[str, Any]) -> np.ndarray:
    p_V = (logits_V / (settings.get("temperature") or 1.0)).softmax(-1).numpy().copy()
    order = np.argsort(-p_V)
    p_V[order[settings.get("top_k", len(order)) :]] = 0
    p_V /= p_V.sum()
    before_V = np.cumsum(p_V[order]) - p_V[order]
    p_V[order[before_V >= settings.get("top_p", 1.0)]] = 0
    with np.errstate(divide="ignore"):
        return np.log(p_V / p_V.sum())


def test_requests_with_and_without_topk_share_a_batch(sampler: tinker.SamplingClient):
    prompt, params = types.ModelInput.from_ints(PROMPT), Params(max_tokens=6, seed=4, stop=[])
    widths = [0, 2, 7, 0, 3]
    futures = [
        sampler.sample(prompt, num_samples=2, sampling_params=params, topk_sample_logprobs=k)
        for k in widths
    ]
    answers = [future.result() for future in futures]
    for k, answer in zip(widths, answers, strict=True):
        for sequence, other in zip(answer.sequences, answers[0].sequences, strict=True):
            assert sequence.tokens == other.tokens
            if not k:
                assert sequence.topk_logprobs is None
            else:
                assert [len(row or []) for row in sequence.topk_logprobs or []] == [k] * 6


def tensor(ids: list[int], shape: list[int]) -> types.TensorData:
    return types.TensorData(data=ids, dtype="int64", shape=shape)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "k beyond the vocabulary": (
        {"topk_prompt_logprobs": 401}, r"topk_prompt_logprobs must be 0 to 400 .*, got 401",
    ),
    "k below zero": ({"topk_sample_logprobs": -1}, "topk_sample_logprobs must be 0 to 400"),
    "too many cells": (
        {"prompt_alt_tokens_k": 1 << 20}, r"length x k must be at most 16777216, got 41943040",
    ),
    "rows missing": (
        {"target_prompt_logprobs": tensor([5] * 38, [38, 1])}, "must have 39 rows .*, got 38",
    ),
    "no token": (
        {"target_prompt_logprobs": tensor([-1] * 39, [39, 1])}, "at least one token id, got none",
    ),
    "a token outside the vocabulary": (
        {"target_prompt_logprobs": tensor([400] * 39, [39, 1])}, r"0 to 399, or -1 .*, got 400",
    ),
    "a token below -1": (
        {"target_prompt_logprobs": tensor([-2] * 39, [39, 1])}, "target_prompt_logprobs.data.0",
    ),
    "rows that do not ascend": (
        {"target_prompt_logprobs": types.TensorData(
            data=[5], dtype="int64", shape=[39, 2],
            sparse_crow_indices=[0, 1, *[0] * 37, 1], sparse_col_indices=[0])},
        "sparse_crow_indices must ascend",
    ),
    "a column that is not there": (
        {"target_prompt_logprobs": types.TensorData(
            data=[5], dtype="int64", shape=[39, 2],
            sparse_crow_indices=[0, *[1] * 39], sparse_col_indices=[2])},
        "sparse_col_indices must name a column",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_scores_that_cannot_be_computed_are_refused_by_name(
    service: tinker.ServiceClient, case: str
):
    extra, message = WRONG[case]
    sampler = service.create_sampling_client(base_model="qwen3").result()
    with pytest.raises((tinker.RequestFailedError, tinker.APIStatusError), match=message):
        ask(sampler, **extra)
    assert ask(sampler).sequences


def test_stability_information_is_refused_with_what_to_do_instead(service: tinker.ServiceClient):
    sampler = service.create_sampling_client(
        base_model="qwen3", record_stability_info=True
    ).result()
    with pytest.raises(tinker.RequestFailedError, match="train with another loss, such as cispo"):
        ask(sampler)


def test_a_prompt_of_one_token_has_nothing_to_score(service: tinker.ServiceClient):
    sampler = service.create_sampling_client(base_model="qwen3").result()
    answer = sampler.sample(
        types.ModelInput.from_ints([5]), num_samples=1, sampling_params=GREEDY,
        include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_alt_tokens_k=2,
    ).result()  # fmt: skip
    assert answer.prompt_logprobs == [None]
    assert answer.topk_prompt_logprobs == [None]
    assert answer.prompt_alt_tokens is not None
    assert answer.prompt_alt_tokens.tokens.to_numpy().shape == (0, 2)
