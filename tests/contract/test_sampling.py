"""What a sampling request promises: its distribution, seeds, stops, limits and company."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tests.clients import Params, random_tokens, sample
from tests.reference import Reference

PROMPT = [20, 259, 262, 2, 201]


@dataclass(frozen=True, slots=True)
class Subject:
    """A sampler under test: what samples, its model, and how many draws show its distribution."""

    name: str
    client: tinker.SamplingClient
    model_dir: Path
    draws: tuple[int, int]  # requests, and samples of each


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def subject(request: pytest.FixtureRequest) -> Subject:
    by_vllm = request.param == "vllm"
    service = request.getfixturevalue("vllm_service" if by_vllm else "service")
    model_dir = request.getfixturevalue("vllm_model_dir" if by_vllm else "qwen3_dir")
    client = service.create_sampling_client(base_model="qwen3").result()
    return Subject(request.param, client, model_dir, (2, 1024) if by_vllm else (5, 4096))


@pytest.fixture
def sampler(subject: Subject) -> tinker.SamplingClient:
    return subject.client


@pytest.fixture
def reference(subject: Subject) -> Reference:
    return Reference.load(subject.model_dir)


def draw(subject: Subject, first_seed: int = 0, **params: object) -> Counter[int]:
    """The last tokens of many samples of the prompt."""
    num_requests, num_samples = subject.draws
    counts: Counter[int] = Counter()
    for seed in range(first_seed, first_seed + num_requests):
        sequences = sample(subject.client, PROMPT, num_samples, seed=seed, stop=[], **params)
        counts.update(sequence.tokens[-1] for sequence in sequences)
    assert counts.total() == num_requests * num_samples
    return counts


def next_token(reference: Reference, tokens: list[int], temperature: float = 1.0) -> np.ndarray:
    return (reference.logits(tokens)[-1] / temperature).softmax(-1).numpy()


def p_value(counts: Counter[int], probabilities: np.ndarray) -> float:
    """Of a chi-square test; tokens expected less than five times share a bin."""
    total = counts.total()
    rare = probabilities * total < 5
    observed = np.array([counts[token] for token in range(len(probabilities))])
    bins = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(probabilities[~rare], probabilities[rare].sum()) * total
    keep = expected > 0
    assert not bins[~keep].any(), "a token of probability zero was drawn"
    statistic = ((bins - expected)[keep] ** 2 / expected[keep]).sum()
    freedom = torch.tensor((keep.sum() - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_models_distribution(
    subject: Subject, reference: Reference, temperature: float
):
    counts = draw(subject, max_tokens=1, temperature=temperature)
    assert p_value(counts, next_token(reference, PROMPT, temperature)) > 1e-4


def test_second_tokens_follow_the_models_distribution(subject: Subject, reference: Reference):
    first = next_token(reference, PROMPT)
    second = sum(
        p * next_token(reference, [*PROMPT, token]) for token, p in enumerate(first) if p > 1e-7
    )
    counts = draw(subject, first_seed=100, max_tokens=2)
    assert p_value(counts, np.asarray(second)) > 1e-4


def test_truncated_draws_follow_the_truncated_distribution(subject: Subject, reference: Reference):
    probabilities = next_token(reference, PROMPT)
    order = np.argsort(-probabilities)[:30]
    shares = probabilities[order] / probabilities[order].sum()
    kept = order[: 1 + int((np.cumsum(shares) < 0.8).sum())]
    truncated = np.zeros_like(probabilities)
    truncated[kept] = probabilities[kept] / probabilities[kept].sum()
    counts = draw(subject, max_tokens=1, top_k=30, top_p=0.8)
    assert p_value(counts, truncated) > 1e-4


def test_requests_with_seeds_in_a_row_are_independent(
    sampler: tinker.SamplingClient, reference: Reference
):
    futures = [
        sampler.sample(
            types.ModelInput.from_ints(PROMPT),
            num_samples=10,
            sampling_params=Params(max_tokens=1, seed=seed, stop=[]),
        )
        for seed in range(300)
    ]
    counts = Counter(s.tokens[0] for future in futures for s in future.result().sequences)
    assert p_value(counts, next_token(reference, PROMPT)) > 1e-4


def test_requests_without_seed_differ(sampler: tinker.SamplingClient):
    [one], [two] = (sample(sampler, PROMPT, max_tokens=30, stop=[]) for _ in range(2))
    assert list(one.tokens) != list(two.tokens)


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(
    sampler: tinker.SamplingClient,
):
    one, again, other = (
        [list(s.tokens) for s in sample(sampler, PROMPT, 3, max_tokens=30, seed=seed, stop=[])]
        for seed in (7, 7, 8)
    )
    assert one == again
    assert not set(map(tuple, one)) & set(map(tuple, other))
    assert len(set(map(tuple, one))) == 3


def test_more_samples_begin_with_the_same_samples_in_order(sampler: tinker.SamplingClient):
    few, many = (
        [list(s.tokens) for s in sample(sampler, PROMPT, n, max_tokens=12, seed=5, stop=[])]
        for n in (3, 40)
    )
    assert many[:3] == few


def test_company_in_the_batch_changes_no_sample(sampler: tinker.SamplingClient):
    """200 requests of different lengths, settings and limits at once: rows join and leave."""
    random = np.random.default_rng(0)
    requests = []
    for i in range(200):
        settings = {
            "max_tokens": int(random.integers(1, 60)),
            "seed": i,
            "temperature": float(random.choice([0.0, 0.7, 1.0])),
            "top_k": int(random.choice([-1, 5])),
            "stop": [] if i % 2 else None,
        }
        requests.append((random_tokens(i, int(random.integers(1, 90))), i % 4 + 1, settings))

    def ask(request: tuple[list[int], int, dict]) -> list[types.SampledSequence]:
        return sample(sampler, request[0], request[1], **request[2])

    with ThreadPoolExecutor(200) as threads:
        together = list(threads.map(ask, requests))
    for i in range(0, 200, 9):
        alone = ask(requests[i])
        assert [list(s.tokens) for s in alone] == [list(s.tokens) for s in together[i]]
        for one, two in zip(alone, together[i], strict=True):
            assert one.stop_reason == two.stop_reason
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    for (_, num_samples, settings), sequences in zip(requests, together, strict=True):
        assert len(sequences) == num_samples
        for sequence in sequences:
            assert len(sequence.tokens) <= settings["max_tokens"]
            ended = sequence.stop_reason == "stop"
            assert ended or len(sequence.tokens) == settings["max_tokens"]
            assert ended == (sequence.tokens[-1] == 2 and settings["stop"] is None)


def test_256_tokens_at_most_where_the_request_names_no_limit(sampler: tinker.SamplingClient):
    [sequence] = sample(sampler, PROMPT, seed=0, stop=[])
    assert len(sequence.tokens) == 256
    assert sequence.stop_reason == "length"


def test_without_a_limit_the_context_is_not_overrun(sampler: tinker.SamplingClient):
    prompt = random_tokens(0, 500)
    [sequence] = sample(sampler, prompt, seed=0, stop=[])
    assert len(prompt) + len(sequence.tokens) == 513  # the last token is never fed back


def test_a_completion_ends_with_the_end_token_which_carries_its_logprob(
    sampler: tinker.SamplingClient, reference: Reference
):
    sequences = sample(sampler, PROMPT, 400, max_tokens=40, seed=1)
    ended = [s for s in sequences if s.stop_reason == "stop"]
    assert ended
    assert all(s.tokens[-1] == 2 and 2 not in s.tokens[:-1] for s in ended)
    assert all(len(s.tokens) == 40 and 2 not in s.tokens for s in sequences if s not in ended)
    first = ended[0]
    assert first.logprobs is not None
    expected = next_token(reference, [*PROMPT, *first.tokens[:-1]])[2]
    assert first.logprobs[-1] == pytest.approx(np.log(expected), abs=1e-5)


def test_an_empty_list_of_stops_never_stops(sampler: tinker.SamplingClient):
    sequences = sample(sampler, PROMPT, 400, max_tokens=40, seed=1, stop=[])
    assert all(len(s.tokens) == 40 and s.stop_reason == "length" for s in sequences)
    assert any(2 in s.tokens for s in sequences)


def test_stops_by_token_id_replace_the_end_token(sampler: tinker.SamplingClient):
    [free] = sample(sampler, PROMPT, max_tokens=40, seed=3, stop=[])
    stop = [free.tokens[11], free.tokens[20]]
    place = min(list(free.tokens).index(token) for token in stop)
    [stopped] = sample(sampler, PROMPT, max_tokens=40, seed=3, stop=stop)
    assert list(stopped.tokens) == list(free.tokens[: place + 1])
    assert stopped.stop_reason == "stop"


def test_a_stop_string_may_span_tokens(sampler: tinker.SamplingClient, subject: Subject):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(subject.model_dir)
    [free] = sample(sampler, PROMPT, max_tokens=40, seed=11, stop=[])
    # All of two tokens in the middle and the first character of the third.
    texts = [tokenizer.decode([token]) for token in free.tokens]
    place = next(
        i for i in range(8, 36)
        if all(text.isascii() and text.isprintable() for text in texts[i : i + 3])
    )  # fmt: skip
    string = "".join(texts[place : place + 2]) + texts[place + 2][0]
    whole = "".join(texts)
    assert whole.index(string) == len("".join(texts[:place])), "choose another seed"
    for stop in (string, [string], ["never seen", string]):
        [stopped] = sample(sampler, PROMPT, max_tokens=40, seed=11, stop=stop)
        assert list(stopped.tokens) == list(free.tokens[: place + 3])
        assert stopped.stop_reason == "stop"
        assert len(stopped.logprobs or []) == place + 3


def test_nothing_of_the_models_generation_config_leaks_in(
    sampler: tinker.SamplingClient, subject: Subject
):
    """It asks for temperature 0.01, top_k 1, max_length 7 and a repetition penalty."""
    assert '"top_k": 1' in (subject.model_dir / "generation_config.json").read_text()
    sequences = sample(sampler, PROMPT, 50, max_tokens=30, seed=0, stop=[])
    assert all(len(s.tokens) == 30 for s in sequences)
    assert len({s.tokens[0] for s in sequences}) > 10
    assert any(len(set(s.tokens)) < 30 for s in sequences), "tokens may repeat"


def test_prompt_logprobs_come_with_samples_when_asked(sampler: tinker.SamplingClient):
    prompt = types.ModelInput.from_ints(PROMPT)
    params = Params(max_tokens=3, seed=0)
    bare = sampler.sample(prompt, num_samples=2, sampling_params=params).result()
    full = sampler.sample(
        prompt, num_samples=2, sampling_params=params, include_prompt_logprobs=True
    ).result()
    assert bare.prompt_logprobs is None
    assert full.prompt_logprobs is not None
    assert len(full.prompt_logprobs) == len(PROMPT)
    assert full.prompt_logprobs[0] is None
    assert [s.tokens for s in bare.sequences] == [s.tokens for s in full.sequences]


def test_a_prompt_of_one_token_and_of_the_whole_context_can_be_sampled(
    sampler: tinker.SamplingClient,
):
    for size in (1, 512):
        [sequence] = sample(sampler, random_tokens(0, size), max_tokens=1, seed=0)
        assert len(sequence.tokens) == 1


def test_a_prompt_of_several_chunks_is_their_concatenation(sampler: tinker.SamplingClient):
    chunks = [types.EncodedTextChunk(tokens=PROMPT[:2]), types.EncodedTextChunk(tokens=PROMPT[2:])]
    split = sampler.sample(
        types.ModelInput(chunks=list(chunks)),
        num_samples=1,
        sampling_params=Params(max_tokens=20, seed=4),
    ).result()
    [whole] = sample(sampler, PROMPT, max_tokens=20, seed=4)
    assert list(split.sequences[0].tokens) == list(whole.tokens)
