"""Whatever is sent to whatever route: an answer, never a crash, and no trace of what was refused.

`TINSMITH_FUZZ_REQUESTS=10000 pytest tests/contract/test_fuzz.py` sends that many requests.
"""

import asyncio
import http.client
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as randomness
from tinker import types

from tests.clients import forward, random_tokens, train
from tests.fuzzing import Call, Route, calls, routes_of
from tests.in_process import KEY, Served, serving
from tinsmith.backend.futures import Failure, JsonResult, Promise, Result

REQUESTS_A_ROUTE = 12
ROUNDS_OF = 60  # requests between two sets of ids, since some requests end what they name
MAX_WAIT_S = 120  # far beyond what any of these requests takes: only a hang lasts longer
TOKENS = random_tokens(0, 10)


class Target:
    """A session with a model, checkpoints and a sampler, at which requests are thrown."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.session_id: str = self._ask("create_session", sdk_version="0.38.0")["session_id"]
        self.model_id = f"{self.session_id}:train:0"
        lora = {"rank": 1, "seed": 0}
        self._ask("create_model", session_id=self.session_id, model_seq_id=0, base_model="qwen3",
                  lora_config=lora)  # fmt: skip
        for seq_id, route in enumerate(("", "_for_sampler", "_external"), start=1):
            self._ask(f"save_weights{route}", model_id=self.model_id, seq_id=seq_id, path="a")
        sampling = {"session_id": self.session_id, "sampling_session_seq_id": 0}
        answer = self._ask("create_sampling_session", base_model="qwen3", **sampling)
        self.sampler_id: str = answer["sampling_session_id"]
        settle(served)

    def _ask(self, route: str, **body: Any) -> dict[str, Any]:
        status, answer, _ = send(
            self.served, Call("POST", f"/api/v1/{route}", JSON, json.dumps(body).encode())
        )
        assert status == 200, answer
        return json.loads(answer)

    def known(self) -> dict[str, list[Any]]:
        """Values that exist, by the names of fields and path parameters."""
        paths = [f"tinker://{self.model_id}/{kind}/a" for kind in KINDS]
        models = [self.model_id, self.model_id, f"{self.session_id}:train:7"]
        return {
            "session_id": [self.session_id, self.session_id, "none"],
            "model_id": models,
            "run_id": models,
            "seq_id": [self.next_seq_id(), self.next_seq_id(), 1, 9],
            "model_seq_id": [0, 1, 2],
            "sampling_session_seq_id": [0, 1],
            "sampling_session_id": [self.sampler_id],
            "sampler_id": [self.sampler_id, "none"],
            "base_model": ["qwen3", "qwen3", "other"],
            "model": ["qwen3", *paths],
            "prompt": ["1 + 1", [5, 6], ["1", "2"]],
            "messages": [[{"role": "user", "content": "1 + 1"}]],
            "request_id": [f"{self.model_id}:0", f"{self.model_id}:1", "none"],
            "path": [*paths, "a", "b", "c"],
            "tinker_path": paths,
            "model_path": paths,
            "source_path": paths,
            "kind": [*KINDS, "snapshot"],
            "name": ["a"],
            "token": ["x"],
            "rank": [1, 2],
            "num_samples": [1, 2],
            "max_tokens": [1, 3],
            "tokens": [[5, 6], [5], [7] * 20],
            "ttl_seconds": [10**6, None],
            "loss_fn": ["cross_entropy", "ppo"],
            "sdk_version": ["0.38.0", "0.99.0"],
        }

    def next_seq_id(self) -> int:
        queue = self.served.core.sequencer._queues.get(self.model_id)
        return 1 if queue is None else queue.next_seq_id


JSON = {"Content-Type": "application/json"}
KINDS = ("weights", "sampler_weights", "external_weights")


def send(served: Served, call: Call) -> tuple[int, bytes, str]:
    """Status, body and content type; a server that does not answer in time is an error."""
    host = served.base_url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=MAX_WAIT_S)
    try:
        headers = {"X-API-Key": KEY, **call.headers}
        connection.request(call.method, call.target, call.body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("content-type", "")
    finally:
        connection.close()


def settle(served: Served) -> None:
    """Wait until the engine has nothing left to do."""
    done = threading.Event()

    def last() -> Result:
        done.set()
        return JsonResult({})

    loop = asyncio.new_event_loop()
    served.core.engine.submit("settle", last, Promise("settle", loop))
    loop.close()
    assert done.wait(MAX_WAIT_S), "the engine hangs"
    end = time.monotonic() + MAX_WAIT_S
    while not served.core.pool.is_idle:
        assert time.monotonic() < end, "sampling hangs"
        time.sleep(0.001)


class Watch:
    """What is in the store, as far as a refused request must leave it alone."""

    def __init__(self, store: Path) -> None:
        self._db = sqlite3.connect(store / "tinsmith.sqlite")
        self._version = -1
        self._seen: dict[str, list[tuple[Any, ...]]] = {}

    def see(self) -> dict[str, list[tuple[Any, ...]]]:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version
            tables = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            self._seen = {name: self._rows(name) for (name,) in tables.fetchall()}
        return self._seen

    def _rows(self, table: str) -> list[tuple[Any, ...]]:
        columns = [row[1] for row in self._db.execute(f"PRAGMA table_info({table})")]
        kept = [name for name in columns if name != "last_request"]  # a refused request is one too
        where = "WHERE expires IS NULL" if "expires" in columns else ""
        return self._db.execute(
            f"SELECT {', '.join(kept)} FROM {table} {where} ORDER BY 1"
        ).fetchall()


def check(target: Target, watch: Watch, call: Call) -> None:
    """Send a request and hold what is promised of every answer."""
    served, before, seq_id = target.served, watch.see(), target.next_seq_id()
    status, body, content_type = send(served, call)
    assert status < 500, body
    settle(served)
    is_json = content_type.startswith("application/json")
    answer = json.loads(body) if is_json and body else None
    is_refused = status >= 400
    if is_refused and call.method != "HEAD":
        assert isinstance(answer, dict), (status, body)
        is_openai = call.target.startswith("/v1/")
        error = answer["error"]["message"] if is_openai else answer["error"]
        assert isinstance(error, str)
        assert error
    if status == 200 and isinstance(answer, dict) and "request_id" in answer:
        failure = outcome(served, answer["request_id"])
        if failure is not None:
            is_refused = True
            assert "internal error" not in failure.message, failure
    if is_refused:
        assert watch.see() == before
    takes_turn = takes_its_turn(target, call, seq_id)
    assert not takes_turn or target.next_seq_id() > seq_id, "those behind it would wait for ever"


def outcome(served: Served, request_id: str) -> Failure | None:
    """The failure of a request that was accepted; None if it succeeded or waits for its turn."""
    promise = served.core.promises.get(request_id)
    assert promise is not None
    waited = asyncio.run_coroutine_threadsafe(promise.wait(0.01), promise._loop).result(MAX_WAIT_S)
    return waited if isinstance(waited, Failure) else None


def takes_its_turn(target: Target, call: Call, seq_id: int) -> bool:
    """Whether a request names the model and the place in its order that is next."""
    is_operation = call.method == "POST" and call.target.startswith(OPERATIONS)
    if not is_operation or call.headers.get("Content-Type") != "application/json":
        return False
    try:
        body = json.loads(call.body)
    except (ValueError, RecursionError):
        return False
    return (
        target.served.core.sequencer.is_open(target.model_id)
        and isinstance(body, dict)
        and body.get("model_id") == target.model_id
        and type(body.get("seq_id")) is int
        and body["seq_id"] == seq_id
        and "Content-Encoding" not in call.headers
    )


OPERATIONS = ("/api/v1/forward", "/api/v1/optim_step", "/api/v1/save_weights")


@pytest.fixture(scope="module")
def served(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzzed")
    with serving(qwen3_dir, folder / "store") as served:
        yield served
        assert [entry.name for entry in folder.iterdir()] == ["store"]


def test_no_request_breaks_the_server_or_leaves_a_trace_where_it_was_refused(served: Served):
    routes = routes_of(served.app)
    wanted = int(os.environ.get("TINSMITH_FUZZ_REQUESTS", REQUESTS_A_ROUTE * len(routes)))
    with served.client() as service:
        witness = service.create_lora_training_client("qwen3", rank=2, seed=3).result()
        train(witness, 2)
        expected = forward(witness, TOKENS)
        watch, broken, sent = Watch(served.core.store.directory), [], 0
        for number, route in enumerate(routes):
            left = (number + 1) * wanted // len(routes) - sent
            while left > 0:
                size = min(left, ROUNDS_OF)
                broken += throw(served, watch, route, size, seed=sent)
                sent, left = sent + size, left - size
            if route.method != "GET":
                assert forward(witness, TOKENS) == expected, f"{route.path} changed another's model"
        assert not broken, "\n\n".join(broken)
        witness.optim_step(types.AdamParams()).result()
        assert forward(witness, TOKENS) != expected
    assert sent == wanted
    for checkpoint in served.core.store.checkpoints():
        folder = served.core.store.folder(checkpoint).resolve()
        assert folder.is_relative_to(served.core.store.directory.resolve())


def throw(served: Served, watch: Watch, route: Route, size: int, seed: int) -> list[str]:
    """Send `size` requests to a route; returns what went wrong."""
    target = Target(served)

    @randomness(seed)
    @settings(
        max_examples=size, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    @given(calls(route, target.known()))
    def hold(call: Call) -> None:
        try:
            check(target, watch, call)
        except Exception as error:
            raise AssertionError(
                f"{call!r:.1500}\n{type(error).__name__}: {error!s:.1500}"
            ) from error

    try:
        hold()
    except Exception as error:
        return [f"{route.method} {route.path}: {error}"]
    return []
