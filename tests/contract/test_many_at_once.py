"""Many sampling requests at once: all are answered, nobody starves, a flood is told to back off."""

from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.clients import (
    Params,
    random_tokens,
    sample,
    train,
    trained_client,
)
from tests.in_process import KEY, serving
from tinsmith.backend import queue
from tinsmith.backend.sampling.pool import MAX_REPLICAS
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 30)
PROMPT = types.ModelInput.from_ints(TOKENS)


def test_a_thousand_requests_at_once_are_all_answered(service: tinker.ServiceClient):
    client = service.create_sampling_client(base_model="llama").result()
    futures = [
        client.sample(types.ModelInput.from_ints([5 + i % 300]), 1, Params(max_tokens=3, seed=i))
        for i in range(1000)
    ]
    answers = [future.result() for future in futures]
    assert all(1 <= len(answer.sequences[0].tokens) <= 3 for answer in answers)
    for i in range(0, 1000, 111):
        [alone] = sample(client, [5 + i % 300], max_tokens=3, seed=i)
        assert alone.tokens == answers[i].sequences[0].tokens


def test_no_client_starves_while_one_floods_the_sampler(endpoint: Endpoint):
    """A flood on one snapshot, another session on the same base model, one on weights of its own,
    more snapshots than there are replicas, and a training run: all get on before the flood ends."""
    with ExitStack() as stack:
        connect = partial(tinker.ServiceClient, base_url=endpoint.base_url)
        services = [stack.enter_context(connect(api_key=endpoint.api_key)) for _ in range(3)]
        flood_and_work(services)


def flood_and_work(services: list[tinker.ServiceClient]) -> None:
    base, other = (s.create_sampling_client(base_model="qwen3").result() for s in services[:2])
    trainer = services[2].create_lora_training_client("qwen3", rank=2, train_mlp=False).result()
    snapshots = [
        trained_client(services[2], "qwen3", rank=rank, steps=1)
        .save_weights_and_get_sampling_client()
        .result()
        for rank in range(1, MAX_REPLICAS + 2)
    ]
    flood = [  # that all run at once and end one after the other
        base.sample(PROMPT, 8, Params(max_tokens=20 + 3 * i, seed=i, stop=[])).future()
        for i in range(150)
    ]
    first, _ = wait(flood, return_when=FIRST_COMPLETED)
    assert first
    for client in (other, *snapshots):
        assert sample(client, TOKENS, 4, max_tokens=30, stop=[])
        assert num_done(flood) < len(flood)
    done_before = num_done(flood)
    train(trainer, 3)
    assert done_before <= num_done(flood) < len(flood)
    for future in flood:
        assert len(future.result().sequences) == 8


def num_done(futures: list[Future[Any]]) -> int:
    return sum(future.done() for future in futures)


def test_beyond_its_bound_a_session_is_told_to_back_off_and_others_are_served(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(queue, "MAX_QUEUED", 8)
    with (
        serving(qwen3_dir, tmp_path / "store") as served,
        httpx.Client(base_url=served.base_url, headers={"X-API-Key": KEY}, timeout=60) as http,
        served.client() as service,
    ):
        created = http.post("/api/v1/create_session", json={"sdk_version": "0.38.0", "tags": []})
        session_id = created.json()["session_id"]
        body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "qwen3"}
        made = http.post("/api/v1/create_sampling_session", json=body).json()
        request = {
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": TOKENS}]},
            "sampling_params": {"max_tokens": 400, "stop": []},
            "num_samples": 100,
            "sampling_session_id": made["sampling_session_id"],
        }

        def ask(seq_id: int) -> httpx.Response:
            return http.post("/api/v1/asample", json=request | {"seq_id": seq_id})

        assert [ask(seq_id).status_code for seq_id in range(8)] == [200] * 8
        beyond = ask(8)
        assert beyond.status_code == 429
        assert "at most 8" in beyond.json()["error"]
        assert sample(
            service.create_sampling_client(base_model="qwen3").result(), TOKENS, 1, max_tokens=2
        )

        repeated = ask(7)
        assert repeated.status_code == 200, "what was taken is known, and not counted twice"
        http.post(f"/api/v1/sessions/{session_id}/finish", json={"reason": {"type": "success"}})
        pending = {"request_id": repeated.json()["request_id"]}
        assert "has ended" in http.post("/api/v1/retrieve_future", json=pending).json()["error"]
        late = ask(10**6)
        assert late.status_code == 410
        assert "has ended" in late.json()["error"]


def test_a_client_that_is_told_to_back_off_gets_all_of_its_answers(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(queue, "MAX_QUEUED", 4)
    refused = []
    busy = queue.Busy
    monkeypatch.setattr(queue, "Busy", lambda said: refused.append(said) or busy(said))
    with serving(qwen3_dir, tmp_path / "store") as served, served.client() as service:
        client = service.create_sampling_client(base_model="qwen3").result()
        futures = [client.sample(PROMPT, 1, Params(max_tokens=100, seed=i)) for i in range(12)]
        assert all(future.result(timeout=120).sequences for future in futures)
    assert refused
