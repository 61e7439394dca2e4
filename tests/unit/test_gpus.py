"""Jobs that share a machine's GPUs: each gets its own, and what a dead one had is free again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinsmith.errors import TinsmithError
from tinsmith.gpus import assigned_gpus, visible_gpus

TWO = "first,second"
# Takes a GPU, starts a child that inherits its lock if told so, says which GPU, and waits.
JOB = """
import os, pathlib, subprocess, sys
from tinsmith.gpus import assigned_gpus
folder, count, has_child = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "child"
with assigned_gpus(count, folder) as locks:
    if has_child:
        child = subprocess.Popen(["sleep", "600"], pass_fds=locks)
        print(child.pid, flush=True)
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts jobs on a machine whose GPUs are `first` and `second`."""
    jobs: list[subprocess.Popen[str]] = []

    def call(count: int = 1, *, child: bool = False) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), str(count), "child" if child else "alone"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": TWO},
        )
        jobs.append(job)
        return job

    yield call
    for job in jobs:
        job.kill()
        job.communicate()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both, so that what assigned_gpus sets is undone as well.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", TWO)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def line(job: subprocess.Popen[str]) -> str:
    assert job.stdout is not None
    return job.stdout.readline().strip()


def test_jobs_side_by_side_never_share_a_gpu_and_a_third_waits_for_one(start: Start) -> None:
    first, second = start(), start()
    assert {line(first), line(second)} == {"first", "second"}
    third = start()
    os.set_blocking(third.stdout.fileno(), False)  # pyright: ignore[reportOptionalMemberAccess]
    time.sleep(2)
    assert line(third) == ""
    os.set_blocking(third.stdout.fileno(), True)  # pyright: ignore[reportOptionalMemberAccess]
    first.communicate()
    assert line(third) in TWO


def test_a_gpu_is_free_again_after_kill_9(start: Start) -> None:
    both = start(2)
    assert line(both) == TWO
    both.send_signal(signal.SIGKILL)
    both.wait()
    assert line(start(2)) == TWO


def test_a_gpu_is_not_free_while_the_server_of_a_dead_job_lives(start: Start) -> None:
    job = start(2, child=True)
    server = int(line(job))
    assert line(job) == TWO
    job.send_signal(signal.SIGKILL)
    job.wait()
    waiting = start(2)
    os.set_blocking(waiting.stdout.fileno(), False)  # pyright: ignore[reportOptionalMemberAccess]
    time.sleep(2)
    assert line(waiting) == ""
    os.set_blocking(waiting.stdout.fileno(), True)  # pyright: ignore[reportOptionalMemberAccess]
    os.kill(server, signal.SIGKILL)
    assert line(waiting) == TWO


@pytest.mark.usefixtures("two_gpus")
def test_with_no_gpu_asked_none_is_seen(tmp_path: Path) -> None:
    with assigned_gpus(0, tmp_path):
        seen = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
        done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True)
        assert done.stdout.strip() == "''"
        assert visible_gpus() == []


@pytest.mark.usefixtures("two_gpus")
def test_more_gpus_than_there_are_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    said = "backend.gpus asks for 3, but CUDA_VISIBLE_DEVICES names 2"
    with pytest.raises(TinsmithError, match=said), assigned_gpus(3, tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(TinsmithError, match="SLURM gave job 17 2"), assigned_gpus(3, tmp_path):
        pass


def test_what_is_not_named_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("", "-1", "NoDevFiles", "-1,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == []
