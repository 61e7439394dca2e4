"""What an operator sees of a server: health, readiness, metrics and the log."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import tinker
from prometheus_client.parser import text_string_to_metric_families
from tinker import types

from tests.clients import make_datum, random_tokens, sample, train
from tests.in_process import KEY, Served, serving
from tinsmith.backend.futures import Promise, Result
from tinsmith.serving import Endpoint, local_server
from tinsmith.settings import ServerSettings

TOKENS = random_tokens(0, 10)


def metrics(url: str, key: str) -> dict[str, float]:
    """Every sample by name and labels, as in `name{label=value}`."""
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


@pytest.fixture
def served(qwen3_dir: Path, tmp_path: Path):
    with serving(qwen3_dir, tmp_path / "store") as served:
        yield served


def test_health_and_readiness_need_no_key_and_metrics_do(endpoint: Endpoint):
    for path in ("/healthz", "/api/v1/healthz", "/readyz"):
        answer = httpx.get(endpoint.base_url + path)
        assert (path, answer.status_code) == (path, 200)
    refused = httpx.get(f"{endpoint.base_url}/metrics")
    assert refused.status_code == 401
    assert "API key" in refused.json()["error"]


def test_a_locked_store_asks_the_client_to_come_back(served: Served):
    asked = {"request_id": "a:train:0:1"}
    url, headers = f"{served.base_url}/api/v1/retrieve_future", {"X-API-Key": KEY}
    ours = served.core.store._db._connection
    for setting in (
        "busy_timeout=20",
        "journal_mode=DELETE",
    ):  # in which a writer locks readers out
        ours.execute(f"PRAGMA {setting}")
    file = served.core.store.directory / "tinsmith.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        locked = httpx.post(url, json=asked, headers=headers, timeout=60)
    assert locked.status_code == 429
    assert "the store is busy (database is locked); ask again" in locked.json()["error"]
    assert httpx.post(url, json=asked, headers=headers, timeout=60).status_code == 404


def die() -> Result:
    raise SystemExit("the disk is gone")


def test_a_server_whose_engine_died_is_alive_not_ready_and_leaves_no_client_waiting(served: Served):
    with served.client() as service:
        trainer = service.create_lora_training_client("qwen3", rank=1).result()
        assert httpx.get(f"{served.base_url}/readyz").status_code == 200
        open_promise = served.core.promises.get(f"{trainer.model_id}:0")
        assert open_promise is not None
        # Sent out of turn: this request waits for one that never comes.
        held = httpx.post(
            f"{served.base_url}/api/v1/optim_step",
            headers={"X-API-Key": KEY},
            json={"model_id": trainer.model_id, "seq_id": 7, "adam_params": {}},
        ).json()["request_id"]
        served.core.engine.submit("test", die, Promise("test", open_promise._loop))
        message = "engine has stopped, SystemExit: the disk is gone; restart the server"
        answer = httpx.post(
            f"{served.base_url}/api/v1/retrieve_future",
            headers={"X-API-Key": KEY},
            json={"request_id": held},
            timeout=60,
        ).json()
        assert message in answer["error"]
        assert answer["category"] == "server"
        with pytest.raises(tinker.RequestFailedError, match=message):
            trainer.forward([make_datum(TOKENS)], "cross_entropy").result(timeout=60)
    assert httpx.get(f"{served.base_url}/healthz").status_code == 200
    readiness = httpx.get(f"{served.base_url}/readyz")
    assert readiness.status_code == 503
    assert "the engine has stopped: SystemExit" in readiness.json()["error"]
    assert metrics(served.base_url, KEY)["tinsmith_engine_up"] == 0


def test_metrics_count_what_was_trained_sampled_and_asked(served: Served):
    with served.client() as service:
        trainer = service.create_lora_training_client("qwen3", rank=1).result()
        data = [make_datum(TOKENS), make_datum(TOKENS[:5])]
        trainer.forward(data, "cross_entropy").result()
        train_before = metrics(served.base_url, KEY)
        assert train_before["tinsmith_trained_tokens_total"] == 0
        trainer.forward_backward(data, "cross_entropy").result()
        trainer.optim_step(types.AdamParams()).result()
        sampler = trainer.save_weights_and_get_sampling_client().result()
        sample(sampler, TOKENS, num_samples=3, max_tokens=5, stop=[])
        found = metrics(served.base_url, KEY)
    assert found["tinsmith_trained_tokens_total"] == 9 + 4
    assert found["tinsmith_sampled_tokens_total"] == 3 * 5
    for operation in ("create_model", "forward", "forward_backward", "optim_step"):
        name = f"tinsmith_operation_duration_seconds_count{{operation={operation}}}"
        assert (operation, found[name]) == (operation, 1)
    assert found["tinsmith_sampling_step_duration_seconds_count"] >= 1
    assert found["tinsmith_models"] == 1
    assert found["tinsmith_snapshots{place=memory}"] == 1
    assert found["tinsmith_engine_up"] == 1
    for gauge in ("operations_waiting", "sample_requests_waiting", "completions_running"):
        assert found[f"tinsmith_{gauge}"] == 0
    assert found["process_resident_memory_bytes"] > 50e6
    steps = "tinsmith_http_requests_total{method=POST,route=/api/v1/optim_step,status=200}"
    assert found[steps] == 1


def test_requests_that_strangers_make_up_add_one_label_value(served: Served):
    for path in ("/a", "/b/c", "/api/v1/none"):
        httpx.request("PROPFIND", served.base_url + path, headers={"X-API-Key": KEY})
        httpx.get(served.base_url + path)
    found = metrics(served.base_url, KEY)
    unmatched = {
        name: value
        for name, value in found.items()
        if "total{" in name and "route=unmatched" in name
    }
    assert sum(unmatched.values()) == 6
    assert {name.split("method=")[1].split(",")[0] for name in unmatched} == {"other", "GET"}


def test_the_log_names_each_request_its_ids_and_its_end_and_no_key(qwen3_dir: Path, tmp_path: Path):
    """As JSON, every line of it; a failed operation carries the id under which it was asked."""
    options = [f"--store={tmp_path / 'store'}", "--threads=1"]
    options += ["--log-format=json", "--log-level=debug"]
    log = tmp_path / "log"
    stranger = "tml-key-of-another-service"
    with local_server({"qwen3": str(qwen3_dir)}, options, log=log) as endpoint:
        with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
            trainer = service.create_lora_training_client("qwen3", rank=1).result()
            train(trainer, 1)
            with pytest.raises(tinker.RequestFailedError, match="checkpoint name"):
                trainer.save_state("../x").result()
        url = f"{endpoint.base_url}/api/v1/training_runs/{endpoint.api_key}?key={endpoint.api_key}"
        unknown = httpx.get(url, headers={"X-API-Key": endpoint.api_key})
        assert unknown.status_code == 404
        httpx.get(f"{endpoint.base_url}/{stranger}", headers={"X-API-Key": stranger})
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert endpoint.api_key not in text
    assert stranger not in text
    requests = [line for line in lines if line["event"] == "request"]
    assert len({line["http_id"] for line in requests}) == len(requests)
    [refused] = [line for line in lines if line["event"] == "operation refused"]
    assert "checkpoint name '../x'" in refused["cause"]
    [asked] = [line for line in requests if line["path"] == "/api/v1/save_weights"]
    assert asked["request_id"] == refused["request_id"]
    assert asked["request_id"].startswith(trainer.model_id)
    assert (asked["method"], asked["status"], asked["level"]) == ("POST", 200, "debug")
    assert asked["duration_ms"] > 0
    [missing] = [line for line in requests if line["http_id"] == unknown.headers["x-request-id"]]
    assert (missing["status"], missing["level"]) == (404, "warning")
    assert missing["path"] == "/api/v1/training_runs/tml-***"


def test_the_log_begins_with_every_setting_and_its_origin_and_holds_no_progress_bar(
    endpoint: Endpoint, endpoint_store: Path
):
    text = (endpoint_store.parent / "log").read_text()
    for name in ServerSettings.model_fields.keys() - {"models", "api_key", "substitutes"}:
        assert f"name={name} origin=" in text
    assert "name=token_budget origin=--token-budget value=256" in text
    assert "name=min_p origin=default value=0.0" in text
    assert "it/s]" not in text


def test_a_key_that_no_header_can_carry_is_refused_at_once(qwen3_dir: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tinsmith.cli", "serve", f"--model={qwen3_dir}",
         f"--store={tmp_path}"],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"TINSMITH_API_KEY": "tml-schl\u00fcssel"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "--api-key must be printable ASCII" in done.stderr
