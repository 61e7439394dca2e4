"""A killed server loses nothing that it acknowledged, and its clients learn how to go on."""

import logging
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
import tinker
from tinker import types

from tests.clients import forward, make_datum, random_tokens, sample
from tinsmith.settings import ServerSettings

T = TypeVar("T")
KEY = "tml-restart"
NUM_KILLS = 10
TOKENS = random_tokens(0, 30)
# Imports torch once, so that a start takes a second.
SERVERS = multiprocessing.get_context("forkserver")
SERVERS.set_forkserver_preload(["tinsmith.backend.server"])


class Killed(Exception):
    pass


def _serve(settings: ServerSettings, log: Path) -> None:
    from tinsmith.backend.server import serve

    sys.stdout = sys.stderr = log.open("a")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    serve(settings, {})


class Server:
    """`serve` in a process of its own, which can be killed and started again where it was."""

    def __init__(self, model: Path, store: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        models = {"qwen3": str(model)}
        self._settings = ServerSettings(
            models=models, store=str(store), api_key=KEY, port=port, device="cpu", threads=1
        )
        self.url = f"http://127.0.0.1:{port}"
        self.store = store
        self.start()

    def start(self) -> None:
        log = self.store.with_name("log")
        self._process = SERVERS.Process(target=_serve, args=(self._settings, log), daemon=True)
        self._process.start()
        while True:
            try:  # the port is open before the models are loaded, and the answer comes after
                httpx.get(f"{self.url}/api/v1/healthz", timeout=100).raise_for_status()
                return
            except httpx.TransportError:
                assert self._process.is_alive(), log.read_text()

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def wait(self, future: tinker.APIFuture[T]) -> T:
        """A future's result, or Killed if the server was killed before it came."""
        while True:
            try:
                return future.result(timeout=0.1)
            except TimeoutError:
                if not self._process.is_alive():
                    raise Killed from None

    def client(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=KEY)


@pytest.fixture
def server(qwen3_dir: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(qwen3_dir, tmp_path / "store")
    yield server
    server.kill()


def step(server: Server, client: tinker.TrainingClient, number: int) -> None:
    data = [make_datum(random_tokens(10 * number + i, 8 + 3 * i)) for i in range(3)]
    gradient = client.forward_backward(data, "cross_entropy")
    taken = client.optim_step(types.AdamParams(learning_rate=1e-2))
    server.wait(gradient)
    server.wait(taken)


def train_until_killed(server: Server, saved: list[str]) -> None:
    """Go on from the last state in `saved`, and add the path of every state acknowledged."""
    service = server.client()
    resume = service.create_training_client_from_state_with_optimizer
    client = server.wait(
        resume(saved[-1]) if saved else service.create_lora_training_client("qwen3", 4, seed=1)
    )
    while True:
        step(server, client, len(saved))
        saved.append(server.wait(client.save_state(f"step-{len(saved)}")).path)


@pytest.mark.filterwarnings("ignore")
def test_no_acknowledged_checkpoint_is_lost_in_ten_kills_at_random_moments(server: Server):
    chance, saved = random.Random(7), list[str]()
    for _ in range(NUM_KILLS):
        killer = threading.Timer(chance.uniform(0.5, 2.5), server.kill)
        killer.start()
        with pytest.raises(Killed):
            train_until_killed(server, saved)
        killer.join()
        server.start()
    assert len({path.split("/")[2] for path in saved}) > NUM_KILLS / 2  # runs that got somewhere
    uninterrupted = server.client().create_lora_training_client("qwen3", 4, seed=1).result()
    before: tinker.TrainingClient | None = None
    with server.client() as service:
        for number, path in enumerate(saved):
            step(server, uninterrupted, number)
            truth = forward(uninterrupted, TOKENS)
            client = service.create_training_client_from_state_with_optimizer(path).result()
            assert forward(client, TOKENS) == truth, path
            if before is not None:  # the moments too: one more step from the state before
                step(server, before, number)
                assert forward(before, TOKENS) == truth, path
            before = client
    kept_on_disk = {folder.parent for folder in server.store.rglob("optimizer.safetensors")}
    rows = sqlite3.connect(server.store / "tinsmith.sqlite").execute(
        "SELECT folder, path FROM checkpoints"
    )
    recorded = {server.store / folder: path for folder, path in rows}
    assert kept_on_disk == set(recorded)
    assert set(saved) <= set(recorded.values())


@pytest.mark.filterwarnings("ignore")
def test_running_clients_are_told_what_they_can_resume_from(server: Server):
    with server.client() as service:
        saving = service.create_lora_training_client("qwen3", 4, seed=1).result()
        unsaved = service.create_lora_training_client("qwen3", 4, seed=1).result()
        step(server, saving, 0)
        paths = [saving.save_state(name).result().path for name in ("first", "second")]
        sampler = saving.save_weights_and_get_sampling_client().result()
        step(server, saving, 1)
        truth = forward(saving, TOKENS)
        server.kill()
        pending = saving.forward_backward([make_datum(TOKENS)], "cross_entropy")
        server.start()
        advice = rf"create_training_client_from_state_with_optimizer\('{paths[-1]}'\)"
        for _ in range(2):
            with pytest.raises(tinker.NotFoundError, match=advice):
                pending.result(timeout=60)
            pending = saving.optim_step(types.AdamParams())
        with pytest.raises(tinker.NotFoundError, match="start again with create_lora_training"):
            unsaved.optim_step(types.AdamParams()).result(timeout=60)
        with pytest.raises(tinker.APIStatusError, match=r"save.* again|saved checkpoint"):
            sample(sampler, TOKENS, max_tokens=1)
        resumed = service.create_training_client_from_state_with_optimizer(paths[-1]).result()
        step(server, resumed, 1)
        assert forward(resumed, TOKENS) == truth


@pytest.mark.filterwarnings("ignore")
def test_an_answer_that_was_being_waited_for_ends_with_the_advice(server: Server):
    with server.client() as service:
        client = service.create_lora_training_client("qwen3", 4, seed=1).result()
        path = client.save_state("only").result().path
        long = [make_datum(random_tokens(i, 500)) for i in range(40)]
        pending = client.forward_backward(long, "cross_entropy")
        with pytest.raises(TimeoutError):
            pending.result(timeout=0.2)
        server.kill()
        server.start()
        with pytest.raises((ValueError, tinker.NotFoundError), match=path):
            pending.result(timeout=100)
