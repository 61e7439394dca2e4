"""Drawing a token: truncation by hand-computed numbers, and the distribution drawn from."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tinsmith.backend.compiled.threads import openmp
from tinsmith.backend.sampling import choose as choosing
from tinsmith.backend.sampling.choose import choose as choose_k
from tinsmith.backend.sampling.request import SamplingRequest
from tinsmith.errors import TinsmithError

HALVES = [0.125, 0.5, 0.25, 0.0625, 0.0625]  # of tokens 0 to 4


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "by PyTorch"])
def is_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a token is drawn of all."""
    if not request.param:
        monkeypatch.setattr(choosing, "runs_compiled", lambda _: False)
    elif openmp() is None:
        pytest.skip("this PyTorch's OpenMP library is not libgomp")


def request(
    temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0
) -> SamplingRequest:
    return SamplingRequest((1,), 1, 1, temperature, top_k, top_p, 0, frozenset(), min_p=min_p)


def choose(
    logits_nV: torch.Tensor, requests: Sequence[SamplingRequest], uniform_n: Sequence[float]
) -> tuple[list[int], list[float]]:
    """One token a row."""
    choice = choose_k(logits_nV, requests, np.array(uniform_n)[:, None])
    return choice.tokens_nk[:, 0].tolist(), choice.logprobs_nk[:, 0].tolist()


def distribution(probabilities: Sequence[float], asked: SamplingRequest) -> dict[int, float]:
    """Token -> probability reported, over a fine grid of uniform numbers."""
    grid = (np.arange(2000) + 0.5) / 2000
    logits_nV = torch.tensor(probabilities).log().expand(len(grid), -1).clone()
    tokens, logprobs = choose(logits_nV, [asked] * len(grid), grid.tolist())
    found = dict(zip(tokens, map(math.exp, logprobs), strict=True))
    for token, probability in found.items():  # what is reported is what is drawn
        assert tokens.count(token) / len(grid) == pytest.approx(probability, abs=2 / len(grid))
    return found


def test_without_truncation_the_probabilities_are_the_models():
    found = distribution(HALVES, request())
    assert found == pytest.approx(dict(enumerate(HALVES)))


@pytest.mark.parametrize(
    ("top_k", "kept"),
    [(1, {1: 1.0}), (2, {1: 2 / 3, 2: 1 / 3}), (3, {1: 4 / 7, 2: 2 / 7, 0: 1 / 7}),
     (5, dict(enumerate(HALVES))), (99, dict(enumerate(HALVES)))],
)  # fmt: skip
def test_top_k_keeps_the_likeliest_and_normalises(top_k: int, kept: dict[int, float]):
    assert distribution(HALVES, request(top_k=top_k)) == pytest.approx(kept)


def test_top_k_gives_a_tie_to_the_smaller_token():
    assert set(distribution(HALVES, request(top_k=4))) == {0, 1, 2, 3}
    assert set(distribution([0.25, 0.25, 0.25, 0.25], request(top_k=2))) == {0, 1}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {1: 1.0}), (0.49, {1: 1.0}), (0.51, {1: 2 / 3, 2: 1 / 3}),
     (0.74, {1: 2 / 3, 2: 1 / 3}), (0.76, {1: 4 / 7, 2: 2 / 7, 0: 1 / 7}),
     (0.99, dict(enumerate(HALVES))), (1.0, dict(enumerate(HALVES)))],
)  # fmt: skip
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: dict[int, float]):
    assert distribution(HALVES, request(top_p=top_p)) == pytest.approx(kept)


@pytest.mark.parametrize(("top_p", "count"), [(0.5, 1), (0.75, 2), (0.875, 3)])
def test_a_mass_of_exactly_top_p_is_enough(top_p: float, count: int):
    assert len(distribution(HALVES, request(top_p=top_p))) == count


def test_top_p_counts_the_mass_that_top_k_left():
    # Of {1: 2/3, 2: 1/3} the first alone reaches 0.6; of all tokens it would not.
    assert distribution(HALVES, request(top_k=2, top_p=0.6)) == pytest.approx({1: 1.0})


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [(0.0, dict(enumerate(HALVES))), (0.12, dict(enumerate(HALVES))),
     (0.24, {1: 4 / 7, 2: 2 / 7, 0: 1 / 7}), (0.26, {1: 2 / 3, 2: 1 / 3}), (1.0, {1: 1.0})],
)  # fmt: skip
def test_min_p_drops_what_is_far_less_likely_than_the_likeliest(
    min_p: float, kept: dict[int, float]
):
    assert distribution(HALVES, request(min_p=min_p)) == pytest.approx(kept)


def test_min_p_of_one_keeps_all_that_are_equally_likely():
    assert set(distribution([0.4, 0.4, 0.2], request(min_p=1.0))) == {0, 1}


def formula(logits_V: np.ndarray, asked: SamplingRequest) -> np.ndarray:
    """Temperature, min_p, top_k, top_p, each normalised, in float64: probabilities."""
    p_V = np.exp((logits_V - logits_V.max()) / asked.temperature)
    p_V[p_V < asked.min_p * p_V.max()] = 0
    order_V = np.argsort(-p_V, kind="stable")
    if asked.top_k != -1:
        p_V[order_V[asked.top_k :]] = 0
    p_V /= p_V.sum()
    before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
    p_V[order_V[(before_V >= asked.top_p) & (np.arange(len(p_V)) > 0)]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "asked",
    [request(min_p=0.05), request(temperature=2.5, min_p=0.3), request(top_p=0.7, min_p=0.1),
     request(temperature=0.6, top_k=9, top_p=0.8, min_p=0.02)],
)  # fmt: skip
def test_log_probabilities_are_those_of_the_filtered_distribution(
    asked: SamplingRequest, seed: int
):
    rng = np.random.default_rng(seed)
    logits_V = rng.normal(scale=2.0, size=500)
    expected_V = formula(logits_V.copy(), asked)
    uniform_n = rng.random(300)
    rows = torch.tensor(logits_V, dtype=torch.float32).expand(len(uniform_n), -1).clone()
    tokens, logprobs = choose(rows, [asked] * len(uniform_n), uniform_n.tolist())
    assert 0 < (expected_V > 0).sum() < 500
    assert min(expected_V[tokens]) > 0
    assert max(abs(np.array(logprobs) - np.log(expected_V[tokens]))) <= 1e-5


def test_temperature_comes_before_truncation():
    # At temperature 1/2 the probabilities are squared: 16, 64, 4 of 84 without the last two.
    found = distribution([0.25, 0.5, 0.125, 0.0625, 0.0625], request(temperature=0.5, top_k=3))
    assert found == pytest.approx({0: 16 / 84, 1: 64 / 84, 2: 4 / 84})
    assert set(distribution(HALVES, request(temperature=0.5, top_p=0.7))) == {1}


def test_temperature_zero_is_the_likeliest_token_with_its_probability_at_temperature_one():
    tokens, logprobs = choose(torch.tensor([HALVES]).log(), [request(temperature=0)], [0.01])
    assert tokens == [1]
    assert math.exp(logprobs[0]) == pytest.approx(0.5)
    tokens, _ = choose(torch.zeros(1, 4), [request(temperature=0)], [0.99])
    assert tokens == [0]


@pytest.mark.parametrize("temperature", [1e-2, 1e-12, 1e-40, 1e-300])
def test_a_temperature_near_zero_is_the_greedy_limit_and_not_a_nan(temperature: float):
    logits = torch.tensor([[3.0, 90.0, -40.0, 89.0]])
    tokens, logprobs = choose(logits, [request(temperature=temperature)], [0.9999])
    assert tokens == [1]
    assert logprobs == [0.0]


def test_rows_of_a_batch_have_settings_of_their_own():
    asked = [request(), request(top_k=1), request(temperature=0), request(top_p=0.6)]
    rows = torch.tensor(HALVES).log().expand(4, -1).clone()
    tokens, logprobs = choose(rows, asked, [0.05, 0.05, 0.99, 0.99])
    assert tokens == [0, 1, 1, 2]
    assert np.exp(logprobs) == pytest.approx([0.125, 1.0, 0.5, 1 / 3])


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_no_uniform_number_draws_a_token_of_probability_zero(uniform: float):
    impossible = [0.0, 0.5, 0.0, 0.5, 0.0]
    [token], [logprob] = choose(torch.tensor([impossible]).log(), [request()], [uniform])
    assert token == (1 if uniform == 0 else 3)
    assert math.exp(logprob) == pytest.approx(0.5)


def test_a_large_vocabulary_keeps_its_last_tokens():
    size = 200_000
    grid = [(size - 0.5) / size, 0.5 / size]
    tokens, logprobs = choose(torch.zeros(2, size), [request()] * 2, grid)
    assert tokens == [size - 1, 0]
    assert logprobs == pytest.approx([-math.log(size)] * 2)


def test_logits_that_are_not_a_number_are_refused():
    with pytest.raises(TinsmithError, match="logits must be finite"):
        choose(torch.tensor([[0.0, math.nan]]), [request()], [0.5])
