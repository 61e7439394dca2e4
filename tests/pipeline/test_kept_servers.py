"""Jobs of one workflow and the real servers that they leave to each other."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.workflow import ROOT, Workflow, wait_for
from tinsmith.config import Backend
from tinsmith.kept import FOLDER, end_unused
from tinsmith.workflow import announce, is_alive

# What a rule's program does, with a server: says which one and which GPUs, and waits.
JOB = """
import json, os, sys
from pathlib import Path
from tinsmith.config import Backend
from tinsmith.job_server import connect_job
from tinsmith.kept import FOLDER
from tinsmith.metadata import JobRecord
record, log = JobRecord(), Path(sys.argv[3])
backend = Backend(**json.loads(sys.argv[2]))
with connect_job(backend, Path(sys.argv[1]), "qwen3", log, record) as service:
    service.create_sampling_client(base_model="qwen3").result()
    said = [file.read_text() for file in FOLDER.glob("*.json")]
    print(*[text for text in said if os.environ["TINKER_BASE_URL"] in text], flush=True)
    if sys.stdin.readline() == "fail\\n":
        sys.exit(1)
print(record.server.num_jobs_before, record.server.peak_memory_bytes, flush=True)
"""
LOCAL = {"kind": "local", "device": "cpu", "threads": 1}


class Job:
    """A program under way, in the folder of a workflow that is this process."""

    def __init__(self, model: Path, folder: Path, name: str, **settings: Any) -> None:
        backend = json.dumps(LOCAL | settings)
        self.log = folder / f"{name}.server.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(model), backend, str(self.log)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | announce(600) | {"PYTHONPATH": str(ROOT), "TINKER_TELEMETRY": "0"},
        )  # fmt: skip

    def server(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self, how: str = "well") -> list[int]:
        said, _ = self.process.communicate(f"{how}\n", timeout=60)
        return [int(word) for word in said.split()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield tmp_path
    end_unused(tmp_path / FOLDER)


def runs(server: dict[str, Any]) -> bool:
    return is_alive(server["pid"], server["created"])


def await_end(server: dict[str, Any], log: Path) -> None:
    wait_for(lambda: not runs(server), log, timeout_s=60)


def test_jobs_share_a_server_one_after_the_other_until_one_fails(
    qwen3_dir: Path, folder: Path
) -> None:
    first = Job(qwen3_dir, folder, "first")
    server = first.server()
    assert first.end()[0] == 0
    second = Job(qwen3_dir, folder, "second")
    assert second.server()["pid"] == server["pid"]
    jobs_before, peak = second.end()
    assert (jobs_before, peak > 1e8) == (1, True)
    assert "Tinsmith serves" in first.log.read_text()
    assert "Tinsmith serves" not in second.log.read_text()
    assert server["api_key"] not in first.log.read_text() + second.log.read_text()

    third = Job(qwen3_dir, folder, "third")
    assert third.server()["pid"] == server["pid"]
    third.end("fail")
    await_end(server, third.log)
    assert list((folder / FOLDER).iterdir()) == []


def test_a_killed_jobs_server_ends_and_two_jobs_at_once_have_two(
    qwen3_dir: Path, folder: Path
) -> None:
    jobs = [Job(qwen3_dir, folder, name) for name in ("first", "second")]
    servers = [job.server() for job in jobs]
    assert servers[0]["pid"] != servers[1]["pid"]
    jobs[0].process.send_signal(signal.SIGKILL)
    jobs[0].process.communicate()
    await_end(servers[0], jobs[0].log)
    assert runs(servers[1])
    assert jobs[1].end()[0] == 0


def test_a_gpu_of_a_waiting_server_is_free_for_a_job_with_other_settings(
    qwen3_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"test-{uuid.uuid4().hex}")
    first = Job(qwen3_dir, folder, "first", gpus=1)
    server = first.server()
    first.end()
    assert runs(server)
    second = Job(qwen3_dir, folder, "second", gpus=1, token_budget=512)
    other = second.server()
    assert not runs(server)
    assert other["gpus"] == server["gpus"] == os.environ["CUDA_VISIBLE_DEVICES"]
    second.end()


def test_the_jobs_of_a_run_share_servers(finished: Workflow) -> None:
    records = [json.loads(f.read_text()) for f in finished.folder.rglob("run_metadata.json")]
    used = [record["kept_server"] for record in records if record["kept_server"]]
    rules = sorted(record["rule"] for record in records if record["kept_server"])
    assert rules == [*["evaluate_stage"] * 3, "export_run", *["train_stage"] * 2]
    assert sum(server["num_jobs_before"] == 0 for server in used) <= 2  # of two cores
    for record in records:
        if server := record["kept_server"]:
            assert record["peak_memory_bytes"]["kept_server"] == server["peak_memory_bytes"]


def test_a_backend_with_a_seed_of_its_own_is_one_jobs_alone() -> None:
    from tinsmith.job_server import keeping_workflow

    told = announce(60)
    assert keeping_workflow(Backend(**LOCAL), told) is not None
    assert keeping_workflow(Backend(**LOCAL, seed=1), told) is None
    assert keeping_workflow(Backend(**LOCAL, record="traffic.jsonl"), told) is None
    assert keeping_workflow(Backend(**LOCAL), announce(0)) is None
    assert keeping_workflow(Backend(kind="hosted"), told) is None
