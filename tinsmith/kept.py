"""Local servers that stay up between the jobs of one workflow, so that a model is loaded once.

Each has a file in work/servers: where it answers, its key, and what it was started with. The job
that uses it holds the lock of the file, so that no server ever has two jobs. One that no job holds
ends by itself: at once where its last job has died, or the workflow; else after `keep_s` seconds.
"""

import contextlib
import fcntl
import http.client
import json
import os
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from tinsmith.errors import TinsmithError
from tinsmith.workflow import Workflow, is_alive

FOLDER = Path("work/servers")
POLL_S = 0.5
END_S = 30
ANSWER_S = 10
# Who looks whether a server is unused has its lock for less than this.
PROBES, PROBE_S = 5, 0.01


@dataclass(frozen=True, slots=True)
class Server:
    """What the file of a server says. `identity` is a hash of the model and all settings;
    `is_held` is left standing by a job that dies; `gpus` is the CUDA_VISIBLE_DEVICES of both."""

    identity: str
    workflow: Workflow
    api_key: str
    is_held: bool = True
    num_jobs: int = 0
    pid: int = 0
    created: float = 0.0
    base_url: str = ""
    gpus: str = ""

    def is_alive(self) -> bool:
        return self.pid != 0 and is_alive(self.pid, self.created)

    def fits(self, identity: str, workflow: Workflow) -> bool:
        """Whether a job can have it, whose last one did not die."""
        return not self.is_held and (self.identity, self.workflow) == (identity, workflow)

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{self.base_url}/readyz", timeout=ANSWER_S).close()
        except (OSError, ValueError, http.client.HTTPException):
            return False
        return True

    def end(self) -> None:
        """Tell its process to stop, and wait until it has."""
        if not self.is_alive():
            return
        until = time.monotonic() + END_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)
            while self.is_alive():
                if time.monotonic() > until:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):  # where another job had started it
            os.waitpid(self.pid, os.WNOHANG)


class Lease:
    """The locked file of a server: nobody else reads it, writes it or uses the server."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self.file = file
        self._descriptor = descriptor

    @property
    def log(self) -> Path:
        return self.file.with_suffix(".log")

    def read(self) -> Server | None:
        """None where whoever should have written it has died first."""
        try:
            size = os.fstat(self._descriptor).st_size
            fields = json.loads(os.pread(self._descriptor, size, 0))
            return Server(**fields | {"workflow": Workflow(**fields["workflow"])})
        except (ValueError, TypeError, KeyError):
            return None

    def write(self, server: Server) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(server)).encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """What is there of a server that has ended; the log stays where a job died with it, since
        nobody has copied that."""
        server = self.read()
        self.file.unlink(missing_ok=True)
        if server is None or not server.is_held:
            self.log.unlink(missing_ok=True)

    def forget(self) -> None:
        """Of a server that has ended, and whose log is copied."""
        self.file.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        self.release()

    def end(self) -> None:
        """End the server and remove it."""
        if server := self.read():
            server.end()
        self.remove()
        self.release()


def lease_of(file: Path) -> Lease | None:
    """The lock of a server's file; None while a job has it, or where the server is gone."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):  # gone, or another user's
        return None
    if _is_locked(descriptor, PROBES) and is_file(file, descriptor):
        return Lease(file, descriptor)
    os.close(descriptor)
    return None


def new_lease(folder: Path) -> Lease:
    """Of a server that is not there yet; nobody but the user can read its file, or its log."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{uuid.uuid4().hex[:8]}.json"
    draft = file.with_suffix(".draft")  # under which nobody looks for it before it is locked
    os.close(os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if not _is_locked(descriptor, 1):
        os.close(descriptor)
        for left in (draft, file.with_suffix(".log")):
            left.unlink()
        raise TinsmithError(
            f"files in {folder} must be lockable (flock), which this file system refuses; set"
            " backend.keep_s: 0, with which every job starts its own server"
        )
    draft.rename(file)
    return Lease(file, descriptor)


def take(identity: str, workflow: Workflow, folder: Path = FOLDER) -> Lease | None:
    """The lease of a server that fits and waits for a job. Those that wait and do not fit are
    ended: their memory and their GPUs are for the server that is started instead."""
    found: Lease | None = None
    for lease in _unused(folder):
        server = lease.read()
        if server is None or not server.fits(identity, workflow):
            lease.end()
        elif found is not None:
            lease.release()  # for another job
        elif server.is_alive() and server.answers():
            found = lease
            lease.write(replace(server, is_held=True, num_jobs=server.num_jobs + 1))
        else:
            lease.end()
    return found


def end_unused(folder: Path = FOLDER) -> None:
    """End every server that no job uses."""
    for lease in _unused(folder):
        lease.end()


def clear(folder: Path = FOLDER) -> None:
    """After a workflow that ended well: end its servers, and remove the logs of those whose jobs
    died on the way."""
    end_unused(folder)
    for log in folder.glob("*.log"):
        if not log.with_suffix(".json").exists():
            log.unlink(missing_ok=True)


def stop_when_unused(file: Path) -> None:
    """In a thread of the server itself: stop it when nobody will use it any more."""
    try:
        await_disuse(file)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(END_S)
        os.kill(os.getpid(), signal.SIGKILL)


def await_disuse(file: Path) -> None:
    """Returns with the lock, or with the file gone, so that no job can still come."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return
    lease, unused_since = Lease(file, descriptor), None
    while True:
        time.sleep(POLL_S)
        if not _is_locked(descriptor, 1):
            unused_since = None
            continue
        now, server = time.monotonic(), lease.read()
        unused_since = unused_since or now
        if server is None or server.is_held or not server.workflow.is_alive():
            break
        if not is_file(file, descriptor):
            break
        if now - unused_since > server.workflow.keep_s:
            break
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    if is_file(file, descriptor):
        lease.remove()


def peak_memory_bytes(pid: int) -> int:
    """The most that a process had in memory since `forget_peak`, or ever where that cannot be."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return psutil.Process(pid).memory_info().rss


def forget_peak(pid: int) -> None:
    """Let Linux count the most memory of a process from now on."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def is_file(file: Path, descriptor: int) -> bool:
    """Whether the open file still has that name: one that lost it is a server that was ended."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unused(folder: Path) -> Iterator[Lease]:
    for file in sorted(folder.glob("*.json")):
        if lease := lease_of(file):
            yield lease


def _is_locked(descriptor: int, attempts: int) -> bool:
    """Take the lock, if nobody has it."""
    for attempt in range(attempts):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < attempts:
                time.sleep(PROBE_S)
        except OSError:
            return False
        else:
            return True
    return False
