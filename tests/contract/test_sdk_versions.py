"""Other versions of the SDK, in environments of their own, get the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

from tests.clients import forward, random_tokens
from tests.compatibility.environments import ROOT, other_versions, python_of
from tinsmith.serving import Endpoint

TOLERANCE = 1e-6


def run_loop(python: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-m", "tests.compatibility.training_loop"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected(endpoint: Endpoint) -> dict[str, Any]:
    return run_loop(sys.executable)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal in structure, and in every number to the tolerance."""
    if isinstance(expected, dict | list):
        assert type(found) is type(expected), where
        assert len(found) == len(expected), where
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(found[key], expected[key], f"{where}.{key}")
    else:
        assert found == (
            pytest.approx(expected, rel=0, abs=TOLERANCE)
            if isinstance(expected, float)
            else expected
        ), where


@pytest.mark.parametrize("version", other_versions())
def test_the_training_and_sampling_loop_gives_the_numbers_of_the_newest_sdk(
    version: str, expected: dict[str, Any]
):
    python = python_of(version)
    if not python.exists():
        pytest.skip(f"{python} is missing: python -m tests.compatibility.environments")
    assert_same(run_loop(python), expected)


def test_the_loop_trains_and_restores(expected: dict[str, Any]):
    losses = [step["metrics"][0]["loss:sum"] for step in expected["steps"]]
    assert losses[2] < losses[0]
    for other in ("resumed", "loaded with optimizer"):
        assert expected[other] == expected["after the state"]
    assert expected["fresh"] == expected["loaded"]
    assert expected["snapshot"] == expected["named"] != expected["base"]


def ask(endpoint: Endpoint, version: str, path: str, content: dict[str, Any]) -> httpx.Response:
    headers = {"X-API-Key": endpoint.api_key, "User-Agent": f"AsyncTinker/Python {version}"}
    url = f"{endpoint.base_url}/api/v1/{path}"
    return httpx.post(url, json=content, headers=headers, trust_env=False)


@pytest.mark.parametrize("version", ["0.18.2", "0.1.5"])
def test_an_sdk_that_is_too_old_is_told_which_ones_are_served(endpoint: Endpoint, version: str):
    # The first request of 0.18 on, and that of the versions before sessions.
    for path, content in (
        ("client/config", {"sdk_version": version}),
        ("create_model", {"base_model": "qwen3", "lora_config": {"rank": 4}}),
    ):
        answer = ask(endpoint, version, path, content)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(
            f"tinker {version} cannot be served: this server serves tinker 0.19.0 and later"
        )


def test_an_sdk_that_is_newer_than_the_server_is_served_with_a_warning(endpoint: Endpoint):
    for version, is_new in ((tinker.__version__, False), ("0.19.0", False), ("1.2.3", True)):
        answer = ask(endpoint, version, "create_session", {"sdk_version": version})
        assert answer.status_code == 200
        assert ("and this is 1.2.3" in (answer.json()["warning_message"] or "")) == is_new


def test_json_that_is_refused_takes_its_turn_so_that_the_run_goes_on(
    endpoint: Endpoint, service: tinker.ServiceClient
):
    client = service.create_lora_training_client("qwen3", rank=2, seed=0).result()
    content = {"model_id": client.model_id, "seq_id": 1, "forward_backward_input": {"data": 3}}
    answer = ask(endpoint, "0.24.1", "forward_backward", content)
    result = ask(endpoint, "0.24.1", "retrieve_future", {"request_id": answer.json()["request_id"]})
    assert result.json()["category"] == "user"
    assert "forward_backward_input.loss_fn is missing" in result.json()["error"]
    client._request_id_counter, client._turn_counter = 1, 1
    forward(client, random_tokens(0, 9))
