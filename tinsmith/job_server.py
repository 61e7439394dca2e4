"""The local server of a job: one that the workflow keeps for its jobs, or the job's own."""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import tinker

from tinsmith.cli import new_api_key
from tinsmith.config import Backend
from tinsmith.gpus import VARIABLE as GPUS
from tinsmith.gpus import assigned_gpus, show_gpus
from tinsmith.kept import FOLDER, Lease, Server, forget_peak, new_lease, peak_memory_bytes, take
from tinsmith.metadata import JobRecord, KeptServer
from tinsmith.serving import (
    READY,
    Endpoint,
    client_of,
    connect,
    did_not_start,
    server_arguments,
    server_command,
    server_environment,
)
from tinsmith.workflow import Workflow, current_workflow

POLL_S = 0.02
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a job asks for, and where what is found out goes."""

    backend: Backend
    model_dir: Path
    model_name: str
    log: Path
    record: JobRecord
    is_last: bool

    def identity(self) -> str:
        """A hash of all that a server is a function of."""
        models, options, _ = server_arguments(
            self.backend, self.model_dir.resolve(), self.model_name
        )
        stats = [file.stat() for file in sorted(self.model_dir.iterdir()) if file.is_file()]
        files = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        text = json.dumps([models, options, self.backend.gpus, files])
        return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def connect_job(
    backend: Backend,
    model_dir: Path,
    model_name: str,
    log: Path,
    record: JobRecord,
    *,
    is_last: bool = False,
    gpu_locks: Sequence[int] = (),
) -> Iterator[tinker.ServiceClient]:
    """As `connect`, with the GPUs that the backend asks for; the time until there is a client
    counts as set-up.

    A local server may be one that has served other jobs of the workflow, one at a time, and serves
    more after this one, unless that `is_last`; `record` then says so. Where the job has its GPUs
    already, and is to have them after the server, their `gpu_locks` say so.
    """
    asked_s = time.monotonic()
    wanted = _Wanted(backend, model_dir, model_name, log, record, is_last)
    with _client(wanted, gpu_locks) as service:
        record.set_up_s += time.monotonic() - asked_s
        yield service


@contextmanager
def _client(wanted: _Wanted, gpu_locks: Sequence[int]) -> Iterator[tinker.ServiceClient]:
    backend = wanted.backend
    workflow = keeping_workflow(backend, os.environ)
    if workflow and not gpu_locks:
        with _kept_server(wanted, workflow) as endpoint, client_of(endpoint) as service:
            yield service
        return
    with (
        nullcontext(gpu_locks) if gpu_locks else assigned_gpus(backend.gpus) as locks,
        connect(backend, wanted.model_dir, wanted.model_name, wanted.log, locks) as service,
    ):
        yield service


def keeping_workflow(backend: Backend, environment: Mapping[str, str]) -> Workflow | None:
    """None where a server is for one job: where its own seed numbers the sessions it has seen, and
    where its traffic is recorded. Linux says what each job took of a shared one's memory."""
    is_keepable = backend.kind == "local" and backend.seed is None and backend.record is None
    workflow = current_workflow(environment) if is_keepable else None
    return workflow if workflow and workflow.keep_s and sys.platform == "linux" else None


@contextmanager
def _kept_server(wanted: _Wanted, workflow: Workflow) -> Iterator[Endpoint]:
    """The server stays where the block ends well; what it said meanwhile goes to the job's log."""
    identity = wanted.identity()
    lease = take(identity, workflow)
    if lease is None:
        lease = _start(wanted, Server(identity, workflow, new_api_key()))
    server = lease.read()
    assert server is not None
    show_gpus(server.gpus)
    said_before = lease.log.stat().st_size if server.num_jobs else 0
    wanted.log.parent.mkdir(parents=True, exist_ok=True)
    wanted.log.write_text(f"While the job runs, what its server says is in {lease.log}\n")
    logger.debug("server %d, after %d other jobs", server.pid, server.num_jobs)
    forget_peak(server.pid)
    is_kept = False
    try:
        yield Endpoint(server.base_url, server.api_key)
        started = datetime.fromtimestamp(server.created, UTC).isoformat()
        with contextlib.suppress(FileNotFoundError):  # it died with the work done
            peak = peak_memory_bytes(server.pid)
            wanted.record.server = KeptServer(started, server.num_jobs, peak)
            is_kept = not wanted.is_last
    finally:
        if not is_kept:
            server.end()
        _copy_log(lease, wanted.log, said_before)
        if is_kept:
            lease.write(replace(server, is_held=False))
            lease.release()
        else:
            lease.forget()


def _start(wanted: _Wanted, server: Server) -> Lease:
    """A server that outlives this process, once it is ready."""
    lease = new_lease(FOLDER)
    lease.write(server)
    try:
        process = _launch(wanted, server.api_key, lease)
        created = psutil.Process(process.pid).create_time()
        server = replace(server, pid=process.pid, created=created, gpus=os.environ[GPUS])
        lease.write(server)
        base_url = _await_ready(process, lease.log)
        if not base_url:
            _copy_log(lease, wanted.log)
            raise did_not_start(process.returncode, wanted.log)
        lease.write(replace(server, base_url=base_url))
    except BaseException:
        server.end()
        lease.forget()
        raise
    return lease


def _launch(wanted: _Wanted, api_key: str, lease: Lease) -> subprocess.Popen[bytes]:
    """Its process, with the locks of its GPUs, in a session of its own and without a pipe to us."""
    backend = wanted.backend
    models, options, hidden = server_arguments(backend, wanted.model_dir, wanted.model_name)
    options.append(f"--stop-when-unused={lease.file.resolve()}")
    with assigned_gpus(backend.gpus) as locks, lease.log.open("ab") as said:
        return subprocess.Popen(
            server_command(models, options),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=server_environment(hidden, api_key),
            start_new_session=True,
            pass_fds=locks,
        )


def _await_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it answers; nothing if it has ended."""
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if (match := READY.match(line)) and line.endswith("\n"):
                return match.group(1)
        time.sleep(POLL_S)
    return ""


def _copy_log(lease: Lease, log: Path, start: int = 0) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # where work/ was deleted meanwhile
        log.write_bytes(lease.log.read_bytes()[start:])
