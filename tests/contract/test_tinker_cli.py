"""Every command of the `tinker` program works on the server, or ends with its reason."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tinker

from tests.clients import trained_client
from tests.reference import read_adapter
from tinsmith.serving import Endpoint


@dataclass(frozen=True)
class Program:
    """The `tinker` program of the installed SDK, in an empty home."""

    home: Path
    endpoint: Endpoint

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it prints, on both channels."""
        environment = os.environ | self.endpoint.environment() | {"HOME": str(self.home)}
        done = subprocess.run(
            [sys.executable, "-m", "tinker.cli", *words],
            capture_output=True, text=True, timeout=120, cwd=self.home,
            input=f"{self.endpoint.api_key}\n",
            env=environment | {"COLUMNS": "250", "TINKER_TELEMETRY": "0"},
        )  # fmt: skip
        # The SDK's own threads abort its interpreter at times, when it has said all and ends.
        assert done.returncode in (code, -signal.SIGABRT), done.stdout + done.stderr
        return done.stdout if words[0] == "--format=json" else done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self("--format=json", *words))


@pytest.fixture(scope="module")
def program(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("home"), endpoint)


@pytest.fixture(scope="module")
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return trained_client(service, "llama", rank=3, steps=1)


@pytest.fixture(scope="module")
def state(trainer: tinker.TrainingClient) -> str:
    return trainer.save_state("state").result().path


def test_runs_are_listed_and_described(program: Program, trainer: tinker.TrainingClient):
    runs = program.json("run", "list", "--limit=0")["runs"]
    [run] = [one for one in runs if one["training_run_id"] == trainer.model_id]
    assert (run["base_model"], run["lora_rank"], run["corrupted"]) == ("llama", 3, False)
    table = program("run", "list", "--columns=id,model,owner,lora,updated,status")
    assert trainer.model_id in table
    assert "Rank 3" in table
    described = program("run", "info", trainer.model_id)
    for word in (trainer.model_id, "llama", "Yes (Rank 3)", "local", "OK"):
        assert word in described
    missing = program("run", "info", "no-such-run", code=1)
    assert "Resource not found" in missing
    assert "training run 'no-such-run' does not exist" in missing


def test_checkpoints_are_listed_and_described(
    program: Program, trainer: tinker.TrainingClient, state: str
):
    listed = program("checkpoint", "list", f"--run-id={trainer.model_id}")
    assert "weights/state" in listed
    assert "training" in listed
    every = program.json("checkpoint", "list", "--limit=0")["checkpoints"]
    assert state in {one["tinker_path"] for one in every}
    described = program("checkpoint", "info", state)
    for word in (state, "Yes (Rank 3)", "Never"):
        assert word in described


def test_a_checkpoint_is_published_given_a_time_to_live_and_deleted(
    program: Program, trainer: tinker.TrainingClient
):
    path = trainer.save_weights_for_sampler("by-hand").result().path

    def found() -> list[dict[str, Any]]:
        listed = program.json("checkpoint", "list", f"--run-id={trainer.model_id}")["checkpoints"]
        return [one for one in listed if one["tinker_path"] == path]

    program("checkpoint", "publish", path)
    program("checkpoint", "set-ttl", path, "--ttl=3600")
    [one] = found()
    assert one["public"]
    assert one["expires_at"] is not None
    program("checkpoint", "unpublish", path)
    program("checkpoint", "set-ttl", path, "--remove")
    [one] = found()
    assert not one["public"]
    assert one["expires_at"] is None
    assert "Deleted 1 checkpoint(s)" in program("checkpoint", "delete", "--yes", path)
    assert found() == []
    again = program("checkpoint", "delete", "--yes", path)
    assert "Failed to delete 1 checkpoint(s)" in again
    assert "does not exist" in again


def test_a_training_checkpoint_is_downloaded_as_a_peft_adapter_and_leaves_nothing(
    program: Program, state: str, tmp_path: Path
):
    before = program.json("checkpoint", "list", "--limit=0")["checkpoints"]
    program("checkpoint", "download", state, f"--output={tmp_path}")
    [folder] = tmp_path.iterdir()
    pairs, scaling = read_adapter(folder)
    assert scaling == 32 / 3
    assert pairs
    after = program.json("checkpoint", "list", "--limit=0")["checkpoints"]
    assert after == before


def test_models_version_and_access_are_told(program: Program):
    models = program("model", "list")
    assert "llama" in models
    assert "512" in models
    assert program.json("model", "list", "QWEN")["models"][0]["model_name"] == "qwen3"
    assert program("version").strip() == f"tinker {tinker.__version__}"
    status = program("auth", "status")
    assert "Credentials available: yes" in status
    assert "Tinker accessible: yes" in status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("auth", "login"), "has one API key, which it is started with: set TINKER_API_KEY"),
        (("auth", "whoami"), "whoami requires JWT auth, but the server has it disabled"),
        (("billing", "checkpoint-storage"), "nothing is billed; list_user_checkpoints"),
        (
            ("billing", "usage", "2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z"),
            "no accounts and no organisation: nothing is billed",
        ),
        (("session", "export-trace", "some-session"), "keeps no timeline of its requests"),
    ],
    ids=lambda words: "-".join(words[:2]) if isinstance(words, tuple) else "",
)
def test_what_does_not_work_ends_with_the_reason(
    program: Program, words: tuple[str, ...], message: str
):
    assert message in " ".join(program(*words, code=1).split())
