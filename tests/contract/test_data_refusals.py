"""Training data and losses that are wrong are refused by name, and the run goes on."""

import math
import re
from collections.abc import Callable

import httpx
import pytest
import tinker
import zstandard
from tinker import types

from tests.clients import forward, make_datum, random_tokens, trained_client
from tinsmith.backend.wire.gate import MAX_DATA_BYTES
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 10)


@pytest.fixture(scope="module")
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return trained_client(service, "qwen3", steps=1)


def policy_datum(**changes: object) -> types.Datum:
    size = len(TOKENS) - 1
    inputs: dict[str, object] = {
        "target_tokens": TOKENS[1:],
        "logprobs": [-1.0] * size,
        "advantages": [0.5] * size,
    }
    inputs = {name: value for name, value in (inputs | changes).items() if value is not None}
    return types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs=inputs,  # pyright: ignore[reportArgumentType]
    )


def floats(values: list[float]) -> types.TensorData:
    return types.TensorData(data=values, dtype="float32", shape=[len(values)])


WRONG_DATA: dict[str, tuple[Callable[[], types.Datum], str, str]] = {
    "advantages too short": (
        lambda: policy_datum(advantages=[1.0] * 4), "importance_sampling",
        r"data\[0\].loss_fn_inputs.advantages: must have one value per token .* \[9\], got \[4\]",
    ),
    "no advantages": (
        lambda: policy_datum(advantages=None), "importance_sampling",
        r"data\[0\].loss_fn_inputs: importance_sampling needs advantages",
    ),
    "an unknown input": (
        lambda: policy_datum(mask=floats([1.0] * 9)), "importance_sampling",
        r"importance_sampling takes target_tokens, logprobs, advantages, not mask",
    ),
    "advantages that are NaN": (
        lambda: policy_datum(advantages=[0.0] * 8 + [math.nan]), "importance_sampling",
        r"advantages\[8\]: must be finite, got nan; nothing was accumulated",
    ),
    "infinite log-probabilities": (
        lambda: policy_datum(logprobs=[0.0, -math.inf, *[0.0] * 7]), "importance_sampling",
        r"logprobs\[1\]: must be finite, got -inf",
    ),
    "weights that are NaN": (
        lambda: make_datum(TOKENS, [math.nan] * 9), "cross_entropy",
        r"weights\[0\]: must be finite, got nan",
    ),
    "targets that are fractions": (
        lambda: policy_datum(target_tokens=floats([1.5] * 9)), "importance_sampling",
        r"target_tokens: dtype must be int64, got float32",
    ),
    "a target outside the vocabulary": (
        lambda: make_datum([*TOKENS[:-1], 400]), "cross_entropy",
        r"target_tokens\[8\]: token ids must be 0 to 399, got 400",
    ),
    "a negative token": (
        lambda: make_datum([-1, *TOKENS[1:]]), "cross_entropy",
        r"model_input\[0\]: token ids must be 0 to 399, got -1",
    ),
    "more tokens than the context": (
        lambda: make_datum(random_tokens(0, 514)), "cross_entropy",
        r"model_input: must hold 1 to 512 tokens \(the model's context\), got 513",
    ),
    "an unknown loss": (lambda: make_datum(TOKENS), "cross_entropi", "unknown to the Tinker API"),
    "two-dimensional targets of a policy loss": (
        lambda: policy_datum(target_tokens=[[token] for token in TOKENS[1:]]), "ppo",
        r"target_tokens: must have one value per token .* shape \[9\], got \[9, 1\]",
    ),
    "weights for one of two targets": (
        lambda: policy_datum(target_tokens=[[token] * 2 for token in TOKENS[1:]], logprobs=None,
                             advantages=None, weights=[1.0] * 9), "cross_entropy",
        r"weights: must have as many values per token as target_tokens, .* \[9, 2\], got \[9\]",
    ),
    "a mask where no loss takes one": (
        lambda: policy_datum(sequence_ratio_mask=[1.0] * 9), "ppo",
        "ppo takes target_tokens, logprobs, advantages, not sequence_ratio_mask",
    ),
    "a loss without a published formula": (
        policy_datum, "stable_reinforce",
        "no published formula, .* use cispo, ppo or importance_sampling .* --substitute",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_DATA)
def test_wrong_training_data_is_refused_by_name_and_the_run_goes_on(
    trainer: tinker.TrainingClient, case: str
):
    make, loss, message = WRONG_DATA[case]
    before = forward(trainer, TOKENS)
    with pytest.raises(tinker.RequestFailedError, match=message):
        trainer.forward_backward([make()], loss).result()  # pyright: ignore[reportArgumentType]
    assert forward(trainer, TOKENS) == before


WRONG_CONFIGS: dict[str, tuple[types.LossFnType, dict[str, float | str], str]] = {
    "no setting": (
        "importance_sampling", {"clip_low_threshold": 0.8}, "has no settings, got clip_low_thresh",
    ),
    "unknown": (
        "ppo", {"epsilon": 0.2}, "ppo takes clip_low_threshold and clip_high_threshold, got epsil",
    ),
    "text": (
        "ppo", {"clip_low_threshold": "0.8"}, "ppo needs a number of 0 to 1, got '0.8'",
    ),
    "an epsilon in place of a bound": (
        "ppo", {"clip_high_threshold": 0.2}, "clip_high_threshold: ppo needs .* 1 or more, got 0.2",
    ),
    "not a number": (
        "cispo", {"clip_high_threshold": math.nan}, "cispo needs a number of 1 or more, got nan",
    ),
    "negative": ("dro", {"beta": -1.0}, "beta: dro needs a number of 0 or more, got -1.0"),
    "missing": ("dro", {}, "beta: dro needs it and has no default .*0.05"),
    "half": (
        "gspo", {"clip_low_threshold": 0.9}, "clip_high_threshold: gspo needs it .* 0.9997 and 1.0",
    ),
    "custom": ("custom", {"loss_id": "x"}, "pass the function itself to forward_backward_custom"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_wrong_settings_of_a_loss_are_refused_by_name(trainer: tinker.TrainingClient, case: str):
    loss, config, message = WRONG_CONFIGS[case]
    with pytest.raises(tinker.RequestFailedError, match=message):
        trainer.forward_backward([policy_datum()], loss, config).result()


def test_a_sequence_without_a_marked_token_has_no_ratio(trainer: tinker.TrainingClient):
    config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    data = [policy_datum(sequence_ratio_mask=[0.0] * 9)]
    with pytest.raises(tinker.RequestFailedError, match="mask: must mark at least one token"):
        trainer.forward_backward(data, "gspo", config).result()


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("gzip", b"x", "Content-Encoding must be zstd, identity or left out, got 'gzip'"),
        ("zstd", b"not compressed", "not one whole zstd frame"),
        ("zstd", zstandard.compress(b"x" * 999)[:-3], "not one whole zstd frame"),
        ("zstd", zstandard.compress(bytes(MAX_DATA_BYTES + 1)), "at most 268435456 .* 268435457"),
        ("zstd", zstandard.compress(b"\xff"), "the body is not a valid message"),
    ],
    ids=["unknown", "not compressed", "cut off", "a bomb", "no message"],
)
def test_a_body_that_cannot_be_read_is_refused(
    endpoint: Endpoint, encoding: str, body: bytes, message: str
):
    answer = httpx.post(
        f"{endpoint.base_url}/api/v1/forward_backward",
        content=body,
        headers={
            "X-API-Key": endpoint.api_key,
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": encoding,
        },
    )
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_one_bad_datum_among_good_ones_accumulates_nothing(service: tinker.ServiceClient):
    client = trained_client(service, "qwen3", steps=1)
    good, bad = make_datum(TOKENS), make_datum(TOKENS, [math.nan] * 9)
    with pytest.raises(tinker.RequestFailedError, match=r"data\[2\]"):
        client.forward_backward([good, good, bad], "cross_entropy").result()
    metrics = client.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] == 0
