"""When a server that is kept between jobs has nothing more to wait for, and for whom it waits."""

import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tinsmith.kept import Lease, Server, await_disuse, clear, end_unused, lease_of, new_lease, take
from tinsmith.workflow import VARIABLE, Workflow, announce, current_workflow

# Several looks of a server's; what a busy machine may take for them; and longer than any test.
LOOKS_S, PATIENCE_S, LONG_S = 2.0, 60.0, 600


def this_workflow(keep_s: int = LONG_S) -> Workflow:
    found = current_workflow(announce(keep_s))
    assert found is not None
    return found


@pytest.fixture
def slept() -> Iterator[subprocess.Popen[bytes]]:
    """A process to be taken for a workflow's or a server's."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def created(process: subprocess.Popen[bytes]) -> float:
    return psutil.Process(process.pid).create_time()


def waiting(folder: Path, **changes: object) -> Lease:
    """The lease of a server that a job has just left to the next."""
    lease = new_lease(folder)
    server = Server("this", this_workflow(), "tml-secret", is_held=False)
    lease.write(replace(server, **changes))
    return lease


def is_disused(file: Path) -> Callable[[float], bool]:
    """Whether the server of a file sees within seconds that nobody will use it."""
    thread = threading.Thread(target=await_disuse, args=(file,), daemon=True)
    thread.start()

    def is_over(within_s: float) -> bool:
        thread.join(within_s)
        return not thread.is_alive()

    return is_over


def test_a_server_waits_for_a_job_no_longer_than_it_is_told(tmp_path: Path) -> None:
    lease = waiting(tmp_path, workflow=this_workflow(keep_s=1))
    is_over = is_disused(lease.file)
    assert not is_over(LOOKS_S)  # a job has it
    lease.release()
    assert is_over(PATIENCE_S)
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_job_died_waits_for_no_other_and_its_log_stays_until_all_is_well(
    tmp_path: Path,
) -> None:
    lease = waiting(tmp_path, is_held=True)
    lease.release()
    assert is_disused(lease.file)(PATIENCE_S)
    assert list(tmp_path.iterdir()) == [lease.log]
    end_unused(tmp_path)
    assert list(tmp_path.iterdir()) == [lease.log]
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_another_user_left_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = waiting(tmp_path)
    lease.release()

    def refuse(*_: object) -> int:  # as the kernel does to any user but root
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    end_unused(tmp_path)
    assert lease.file.exists()


def test_a_server_whose_workflow_died_waits_for_its_job_alone(
    tmp_path: Path, slept: subprocess.Popen[bytes]
) -> None:
    workflow = replace(this_workflow(), pid=slept.pid, created=created(slept))
    lease = waiting(tmp_path, workflow=workflow)
    is_over = is_disused(lease.file)
    slept.kill()
    slept.wait()
    assert not is_over(LOOKS_S)
    lease.release()
    assert is_over(PATIENCE_S)


def test_a_server_that_no_job_can_find_waits_for_none(tmp_path: Path) -> None:
    lease = waiting(tmp_path)
    is_over = is_disused(lease.file)
    lease.file.unlink()
    lease.release()
    assert is_over(PATIENCE_S)


def test_a_server_whose_file_is_gone_before_it_looks_waits_for_none(tmp_path: Path) -> None:
    await_disuse(tmp_path / "ended.json")


def test_its_key_is_for_the_user_alone(tmp_path: Path) -> None:
    lease = waiting(tmp_path)
    for file in (lease.file, lease.log):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_job_ends_what_waits_and_does_not_fit_and_leaves_what_other_jobs_use(
    tmp_path: Path, slept: subprocess.Popen[bytes]
) -> None:
    used, other = waiting(tmp_path), waiting(tmp_path, pid=slept.pid, created=created(slept))
    other.release()
    assert take("another", this_workflow(), tmp_path) is None
    assert not psutil.pid_exists(slept.pid)
    assert [used.file] == list(tmp_path.glob("*.json"))
    assert lease_of(used.file) is None
    used.release()
    end_unused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_not_taken(
    tmp_path: Path, slept: subprocess.Popen[bytes]
) -> None:
    lease = waiting(tmp_path, pid=slept.pid, created=created(slept), base_url="http://127.0.0.1:9")
    lease.release()
    assert take("this", this_workflow(), tmp_path) is None
    assert not psutil.pid_exists(slept.pid)


def test_only_jobs_beside_their_workflow_share_servers() -> None:
    told = announce(60)
    assert current_workflow(told) is not None
    assert current_workflow({}) is None
    assert current_workflow(told | {"SLURM_JOB_ID": "17"}) is None
    for runtime in ("APPTAINER", "SINGULARITY"):
        assert current_workflow(told | {f"{runtime}_CONTAINER": "/engine.sif"}) is None
    assert current_workflow({VARIABLE: told[VARIABLE].replace(os.uname().nodename, "x")}) is None
    gone = told[VARIABLE].replace(f'"pid": {os.getpid()}', '"pid": 4194305')
    assert gone != told[VARIABLE]
    assert current_workflow({VARIABLE: gone}) is None
