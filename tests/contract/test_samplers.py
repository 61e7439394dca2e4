"""The life of sampling clients: what they hold on to, share, give up, and how many there may be."""

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker
from tinker import types

from tests.clients import (
    Params,
    forward,
    prompt_logprobs,
    random_tokens,
    sample,
    train,
    trained_client,
)
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 30)
PROMPT = types.ModelInput.from_ints(TOKENS)
LONG = Params(max_tokens=400, seed=0, stop=[])


@pytest.fixture
def service(each_service: tinker.ServiceClient) -> tinker.ServiceClient:
    """Of either sampler: what these tests hold is the same on both."""
    return each_service


@pytest.fixture
def http(each_endpoint: Endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=each_endpoint.base_url, headers={"X-API-Key": each_endpoint.api_key}, timeout=60
    ) as client:
        yield client


def sampler_id(client: tinker.SamplingClient) -> str:
    return json.loads(base64.urlsafe_b64decode(client.get_sampler_handle()))["sampling_session_id"]


def num_running(http: httpx.Client) -> float:
    found = re.search(r"^tinsmith_completions_running (\S+)$", http.get("/metrics").text, re.M)
    assert found
    return float(found[1])


def wait_until_running(http: httpx.Client) -> None:
    for _ in range(600):
        if num_running(http):
            return
        time.sleep(0.05)
    raise AssertionError("nothing runs")


def wait_until_known(service: tinker.ServiceClient, http: httpx.Client) -> None:
    """Until completions run and the SDK has been told how to cancel them: the answer to a request
    that it made later is there."""
    wait_until_running(http)
    service.get_server_capabilities()


# Weights that follow the training


def test_inflight_clients_of_a_run_share_its_last_published_weights(
    service: tinker.ServiceClient,
):
    trainer = trained_client(service, "qwen3")
    snapshot = trainer.save_weights_and_get_sampling_client().result()
    first = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    before = forward(trainer, TOKENS)
    assert prompt_logprobs(first, TOKENS) == pytest.approx(before, abs=1e-5)
    train(trainer, 2, seed=5)
    after = forward(trainer, TOKENS)
    assert after != pytest.approx(before, abs=1e-2)
    assert prompt_logprobs(first, TOKENS) == pytest.approx(before, abs=1e-5), "not published yet"
    second = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    for client in (first, second):
        assert prompt_logprobs(client, TOKENS) == pytest.approx(after, abs=1e-5)
    assert prompt_logprobs(snapshot, TOKENS) == pytest.approx(before, abs=1e-5)


def test_inflight_clients_of_two_runs_do_not_share_weights(service: tinker.ServiceClient):
    trainers = [trained_client(service, "qwen3", seed=seed) for seed in (1, 2)]
    clients = [
        trainer.save_weights_and_get_sampling_client(kind="inflight").result()
        for trainer in trainers
    ]
    for trainer, client in zip(trainers, clients, strict=True):
        assert prompt_logprobs(client, TOKENS) == pytest.approx(forward(trainer, TOKENS), abs=1e-5)


def test_a_completion_under_way_goes_on_with_newly_published_weights(
    service: tinker.ServiceClient,
):
    trainer = trained_client(service, "qwen3")
    client = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    alone = client.sample(PROMPT, 4, LONG).result()
    train(trainer, 1, seed=5, rate=0.1)
    pending = client.sample(PROMPT, 4, LONG)
    sample(client, TOKENS, max_tokens=3, stop=[])  # beside them, so that they have as many tokens
    trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    spanning = pending.result()
    assert [len(s.tokens) for s in spanning.sequences] == [400] * 4
    for one, two in zip(alone.sequences, spanning.sequences, strict=True):
        assert one.tokens[:2] == two.tokens[:2]
        assert one.tokens != two.tokens


def test_completions_on_an_older_snapshot_keep_its_weights_while_others_are_replaced(
    service: tinker.ServiceClient,
):
    trainer = trained_client(service, "qwen3", seed=2)
    held = trainer.save_weights_and_get_sampling_client().result()
    inflight = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    alone = held.sample(PROMPT, 4, LONG).result()
    train(trainer, 1, seed=5, rate=0.1)
    pending = [client.sample(PROMPT, 4, LONG) for client in (held, inflight)]
    trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    kept, replaced = (future.result() for future in pending)
    for one, two, other in zip(alone.sequences, kept.sequences, replaced.sequences, strict=True):
        assert list(one.tokens) == list(two.tokens)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
        assert list(one.tokens) != list(other.tokens)


# Giving up


def test_a_cancelled_future_ends_the_work_on_the_server(
    service: tinker.ServiceClient, http: httpx.Client
):
    client = service.create_sampling_client(base_model="qwen3").result()
    pending = client.sample(PROMPT, 4000, LONG)
    wait_until_known(service, http)
    pending.future().cancel()
    body = {"request_id": f"{sampler_id(client)}:0"}
    answer = http.post("/api/v1/retrieve_future", json=body).json()
    assert answer == {"error": "the request was cancelled by its client", "category": "user"}
    assert num_running(http) == 0
    assert len(sample(client, TOKENS, 2, max_tokens=3, stop=[])) == 2


def test_a_timeout_of_the_user_cancels_too(service: tinker.ServiceClient, http: httpx.Client):
    import asyncio

    client = service.create_sampling_client(base_model="qwen3").result()

    pending = client.sample(PROMPT, 4000, LONG)
    wait_until_known(service, http)

    async def ask() -> None:
        await asyncio.wait_for(pending, timeout=0.5)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(ask())
    for _ in range(600):
        if not num_running(http):
            return
        time.sleep(0.05)
    raise AssertionError("the work goes on")


def test_only_sampling_requests_are_cancelled_and_late_ones_do_no_harm(
    service: tinker.ServiceClient, http: httpx.Client
):
    client = service.create_sampling_client(base_model="qwen3").result()
    sample(client, TOKENS, max_tokens=1)
    for request_id in (f"{sampler_id(client)}:0", "never-heard-of"):
        assert http.post("/api/v1/cancel_future", json={"request_id": request_id}).json() == {}
    session_id = sampler_id(client).split(":")[0]
    unused = 20_000  # the session's SDK counts its own models up from 0
    body = {"session_id": session_id, "model_seq_id": unused, "base_model": "qwen3"}
    created = http.post("/api/v1/create_model", json=body).json()
    model_id = http.post("/api/v1/retrieve_future", json=created).json()["model_id"]
    body = {"model_id": model_id, "adam_params": {"learning_rate": 0.0}}
    second = http.post("/api/v1/optim_step", json=body | {"seq_id": 2}).json()["request_id"]
    refused = http.post("/api/v1/cancel_future", json={"request_id": second})
    assert refused.status_code == 400
    assert "is not a sampling request; only those are cancelled" in refused.json()["error"]
    http.post("/api/v1/optim_step", json=body | {"seq_id": 1})
    done = http.post("/api/v1/retrieve_future", json={"request_id": second}).json()
    assert done["type"] == "optim_step", "it waited for the first, and was not cancelled"


# Other processes

CLONE = """
import json, sys, tinker
from tinker import types
from tinker.types import ModelInput, SamplingParams
client = tinker.SamplingClient.from_sampler_handle(sys.argv[1])
tokens = json.loads(sys.argv[2])
params = SamplingParams(max_tokens=5, seed=int(sys.argv[3]), stop=[])
found = [client.sample(ModelInput.from_ints(tokens), 1, params) for _ in range(3)]
print(json.dumps([list(f.result().sequences[0].tokens) for f in found]))
"""


def test_clients_in_other_processes_sample_the_same_weights_and_get_their_own_answers(
    service: tinker.ServiceClient, each_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    for variable, value in each_endpoint.environment().items():
        monkeypatch.setenv(variable, value)
    trainer = trained_client(service, "qwen3")
    client = trainer.save_weights_and_get_sampling_client().result()
    handle = client.get_sampler_handle()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLONE, handle, json.dumps(TOKENS), str(seed)],
            stdout=subprocess.PIPE, text=True, env=os.environ,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    found = [json.loads(process.communicate(timeout=200)[0]) for process in processes]
    for seed, answers in zip((1, 2), found, strict=True):
        [own] = sample(client, TOKENS, max_tokens=5, seed=seed, stop=[])
        assert answers == [list(own.tokens)] * 3
    copy = pickle.loads(pickle.dumps(client))
    assert prompt_logprobs(copy, TOKENS) == pytest.approx(prompt_logprobs(client, TOKENS), abs=1e-6)


def test_clients_that_join_a_sampling_session_get_numbers_of_their_own(
    service: tinker.ServiceClient, http: httpx.Client
):
    client = service.create_sampling_client(base_model="qwen3").result()
    body = {"sampling_session_id": sampler_id(client)}
    numbers = [
        http.post("/api/v1/join_sampling_session", json=body).json()["client_counter"]
        for _ in range(20)
    ]
    assert len(set(numbers)) == 20
    assert all(0 < number <= 10**9 for number in numbers)
    assert http.post("/api/v1/join_sampling_session", json={"sampling_session_id": "x"}).is_error


# Checkpoints


def test_a_client_keeps_the_checkpoint_it_was_made_on(service: tinker.ServiceClient):
    """Overwritten and then deleted before the client samples for the first time."""
    trainer = trained_client(service, "qwen3")
    path = trainer.save_state("kept").result().path
    old = service.create_sampling_client(model_path=path).result()
    before = forward(trainer, TOKENS)
    train(trainer, 2, seed=5)
    assert trainer.save_state("kept", overwrite=True).result().path == path
    new = service.create_sampling_client(model_path=path).result()
    service.create_rest_client().delete_checkpoint_from_tinker_path(path).result()
    assert prompt_logprobs(old, TOKENS) == pytest.approx(before, abs=1e-5)
    assert prompt_logprobs(new, TOKENS) == pytest.approx(forward(trainer, TOKENS), abs=1e-5)
    with pytest.raises(tinker.NotFoundError, match="does not exist"):
        service.create_sampling_client(model_path=path).result()


# A server that was killed


def test_after_a_restart_clients_of_checkpoints_go_on_and_others_are_told_why_not(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests.contract.test_life import ready_line, started

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    options = ["serve", f"--model=qwen3={qwen3_dir}", f"--store={tmp_path / 'store'}"]
    options += ["--threads=1", "--api-key=tml-of-this-test"]
    with started(*options, "--port=0") as process:
        address = ready_line(process).split()[-1]
        service = tinker.ServiceClient(base_url=address, api_key="tml-of-this-test")
        trainer = trained_client(service, "qwen3")
        path = trainer.save_weights_for_sampler("kept").result().path
        state = trainer.save_state("changed").result().path
        kept = service.create_sampling_client(model_path=path).result()
        unsampled = service.create_sampling_client(model_path=path).result()
        stale = service.create_sampling_client(model_path=state).result()
        base = service.create_sampling_client(base_model="qwen3").result()
        snapshot = trainer.save_weights_and_get_sampling_client().result()
        truth, truth_of_base = prompt_logprobs(kept, TOKENS), prompt_logprobs(base, TOKENS)
        trainer.save_state("changed", overwrite=True).result()
        assert prompt_logprobs(stale, TOKENS) == pytest.approx(truth, abs=1e-6)
        process.kill()
    with started(*options, f"--port={address.rsplit(':', 1)[1]}") as process:
        ready_line(process)
        for client in (kept, unsampled):
            assert prompt_logprobs(client, TOKENS) == pytest.approx(truth, abs=1e-6)
        assert prompt_logprobs(base, TOKENS) == pytest.approx(truth_of_base, abs=1e-6)
        with pytest.raises(tinker.NotFoundError, match="save the weights for sampling again"):
            prompt_logprobs(snapshot, TOKENS)
        with pytest.raises(tinker.APIStatusError, match="make a new sampling client") as gone:
            prompt_logprobs(stale, TOKENS)
        assert gone.value.status_code == 410
