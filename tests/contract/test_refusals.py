"""What is wrong with a request is said in one clear sentence, and the run goes on."""

import math
from collections.abc import Callable

import httpx
import pytest
import tinker
from tinker import types
from tinker.types.optimizer import DimuonOptimizerConfig

from tests.clients import forward, random_tokens, sample, trained_client
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 10)


@pytest.fixture(scope="module")
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return trained_client(service, "qwen3", steps=1)


@pytest.fixture(scope="module")
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model="qwen3").result()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (types.AdamParams(learning_rate=-1.0), "learning_rate: .*greater than or equal to 0"),
        (types.AdamParams(learning_rate=math.nan), "learning_rate: .*valid number"),
        (types.AdamParams(beta1=1.0), "beta1: .*less than 1"),
        (types.DimuonParams(learning_rate=1e-3), "optimizer_params is not a field"),
    ],
)
def test_wrong_optimizer_settings_are_refused_and_the_run_goes_on(
    trainer: tinker.TrainingClient, step: types.AdamParams, message: str
):
    with pytest.raises(tinker.RequestFailedError, match=message):
        trainer.optim_step(step).result()
    forward(trainer, TOKENS)


WRONG_SAVES: dict[str, tuple[Callable[[tinker.TrainingClient], object], str]] = {
    "escape": (lambda c: c.save_state("../x").result(), "checkpoint name '../x'"),
    "slash": (lambda c: c.save_weights_for_sampler("a/b").result(), "checkpoint name 'a/b'"),
    "absolute": (lambda c: c.save_weights_external("/tmp/x").result(), "checkpoint name '/tmp/x'"),
    "ttl": (lambda c: c.save_state("t", ttl_seconds=0).result(), "ttl_seconds: .*greater"),
    "age": (
        lambda c: c.save_weights_external("e", age_encryption_recipients=["age1x"]).result(),
        r"age_encryption_recipients\[0\]: must be an age1... key .*got 'age1x'",
    ),
    "load": (
        lambda c: c.load_state("tinker://a/weights/b").result(),
        "checkpoint tinker://a/weights/b does not exist",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:DEPRECATED")
@pytest.mark.parametrize("case", WRONG_SAVES)
def test_wrong_saving_and_loading_is_refused_and_the_run_goes_on(
    trainer: tinker.TrainingClient, case: str
):
    act, message = WRONG_SAVES[case]
    with pytest.raises(tinker.RequestFailedError, match=message):
        act(trainer)
    forward(trainer, TOKENS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 504}, r"context of 512 tokens, got 10 \+ 504; shorten one of them"),
        ({"temperature": -0.1}, "temperature must be 0 or more and finite, got -0.1"),
        ({"top_k": 0}, r"top_k must be -1 \(no limit\) or 1 to 2147483647, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"stop": [400]}, "stop: token ids must be 0 to 399, got 400"),
        ({"stop": ""}, "a stop string must not be empty"),
    ],
)
def test_wrong_sampling_settings_are_refused_and_the_next_request_is_served(
    sampler: tinker.SamplingClient, settings: dict, message: str
):
    with pytest.raises(tinker.RequestFailedError, match=message):
        sample(sampler, TOKENS, **settings)
    assert sample(sampler, TOKENS, max_tokens=2)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt must be at least one token"), ([5, 400], "0 to 399, got 400"),
     (random_tokens(0, 513), r"got 513 \+ 1; shorten")],
)  # fmt: skip
def test_wrong_prompts_are_refused(sampler: tinker.SamplingClient, prompt: list[int], message: str):
    with pytest.raises((tinker.RequestFailedError, tinker.APIStatusError), match=message):
        sample(sampler, prompt, max_tokens=1)


@pytest.mark.parametrize("num_samples", [0, 10**9])
def test_an_impossible_number_of_samples_is_refused(
    sampler: tinker.SamplingClient, num_samples: int
):
    with pytest.raises(tinker.APIStatusError, match="num_samples"):
        sample(sampler, TOKENS, num_samples, max_tokens=1)


def test_what_is_not_there_is_named(service: tinker.ServiceClient):
    missing = "tinker://nobody:train:0/weights/none"
    for act, message in (
        (lambda: service.create_lora_training_client("gpt-9"), "'gpt-9' is not served here"),
        (lambda: service.create_sampling_client(base_model="gpt-9"), "served: qwen3, llama"),
        (lambda: service.create_sampling_client(model_path=missing), "does not exist in"),
        (lambda: service.create_training_client_from_state(missing), "does not exist"),
    ):
        with pytest.raises(tinker.TinkerError, match=message):
            act().result()


@pytest.mark.parametrize("rank", [0, 2000])
def test_an_impossible_rank_is_refused(service: tinker.ServiceClient, rank: int):
    with pytest.raises(tinker.TinkerError, match=f"rank must be 1 to 1024, got {rank}"):
        service.create_lora_training_client("qwen3", rank=rank).result()


def test_another_optimizer_is_refused(service: tinker.ServiceClient):
    dimuon = DimuonOptimizerConfig()
    with pytest.raises(tinker.TinkerError, match="optimizer_config"):
        service.create_lora_training_client("qwen3", optimizer=dimuon).result()


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "tml-wrong"}, {"X-API-Key": "tml-\u00e9"}])
def test_a_wrong_api_key_is_refused_on_every_path(endpoint: Endpoint, headers: dict[str, str]):
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    for path in ("get_server_capabilities", "training_runs", "no/such/path"):
        answer = httpx.get(f"{endpoint.base_url}/api/v1/{path}", headers=encoded)
        assert answer.status_code == 401
        assert "API key is missing or wrong" in answer.json()["error"]
    assert httpx.get(f"{endpoint.base_url}/api/v1/healthz").json() == {"status": "ok"}


def test_the_sdk_says_so_when_the_api_key_is_wrong(endpoint: Endpoint):
    with pytest.raises(tinker.AuthenticationError, match="set TINKER_API_KEY to the key of this"):
        tinker.RestClient(base_url=endpoint.base_url, api_key="tml-wrong")


def post(endpoint: Endpoint, path: str, body: object) -> httpx.Response:
    headers = {"X-API-Key": endpoint.api_key}
    return httpx.post(f"{endpoint.base_url}/api/v1/{path}", json=body, headers=headers, timeout=60)


def test_an_unknown_field_of_a_request_is_refused_by_name(endpoint: Endpoint):
    body = {"sdk_version": "0", "tags": [], "type": "create_session", "color": "red"}
    answer = post(endpoint, "create_session", body)
    assert answer.status_code == 422
    assert "color is not a field of this request" in answer.json()["error"]


def test_an_unknown_path_is_answered_with_a_sentence(endpoint: Endpoint):
    answer = post(endpoint, "no_such_thing", {})
    assert answer.status_code == 404
    assert "POST /api/v1/no_such_thing is not offered" in answer.json()["error"]


def test_a_forgotten_request_is_resampled_but_never_retrained(endpoint: Endpoint):
    for kind, status in (("Sample", 410), ("ForwardBackward", 404)):
        answer = httpx.post(
            f"{endpoint.base_url}/api/v1/retrieve_future",
            json={"request_id": "long-gone"},
            headers={"X-API-Key": endpoint.api_key, "X-Tinker-Request-Type": kind},
        )
        assert answer.status_code == status
        assert "unknown to this server" in answer.json()["error"]
