"""GPUs for one job among several of a machine: Snakemake counts them, and assigns none.

A job takes a lock for each GPU that it is given, and hands the open locks to the server that it
starts: the kernel frees a GPU once the last process that has its lock open is dead, by any death.
"""

import fcntl
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinsmith.errors import TinsmithError
from tinsmith.interruption import prompt_sigterm
from tinsmith.kept import end_unused

# One folder for all users and sessions of the machine, whatever their TMPDIR.
LOCKS = Path("/tmp/tinsmith-gpus")
VARIABLE = "CUDA_VISIBLE_DEVICES"
NONE = ("-1", "NoDevFiles")
POLL_S = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What CUDA_VISIBLE_DEVICES calls it, and what all processes of the machine call it."""

    name: str
    uuid: str


@contextmanager
def assigned_gpus(count: int, folder: Path = LOCKS) -> Iterator[tuple[int, ...]]:
    """Let this process and its children see `count` GPUs that no other job has, waiting for them
    if it must; yields the open locks. With 0, no GPU is seen.

    They are chosen from those that CUDA_VISIBLE_DEVICES names, which is how SLURM gives a job its
    own, or from all.
    """
    if count == 0:
        os.environ[VARIABLE] = ""
        yield ()
        return
    gpus = visible_gpus()
    if count > len(gpus):
        raise TinsmithError(_too_few(count, len(gpus)))
    with ExitStack() as stack:
        taken = _take(count, gpus, folder, stack)
        show_gpus(",".join(gpu.name for gpu in taken))
        logger.info("GPU %s of %s", os.environ[VARIABLE], os.uname().nodename)
        yield tuple(taken.values())


def show_gpus(names: str) -> None:
    """Let this process and its children see these GPUs alone, numbered in this order."""
    # nvidia-smi and SLURM count in the order of the bus; CUDA by itself puts the fastest first.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ[VARIABLE] = names


def ask_driver(*fields: str) -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU, without loading torch; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use, in order."""
    uuids = _uuids()
    named = os.environ.get(VARIABLE)
    if named is None:
        return [Gpu(index, uuid) for index, uuid in uuids.items()]
    names: list[str] = []
    for name in (part.strip() for part in named.split(",") if part.strip()):
        if name in NONE:
            break  # as CUDA reads it
        names.append(name)
    return [Gpu(name, uuids.get(name, name)) for name in names]


def _uuids() -> dict[str, str]:
    """The UUID of each GPU that the driver shows, by its index."""
    return {row["index"]: row["uuid"] for row in ask_driver("index", "uuid")}


def _take(count: int, gpus: list[Gpu], folder: Path, stack: ExitStack) -> dict[Gpu, int]:
    """Lock `count` GPUs at once: who holds some while waiting for more could wait for ever."""
    is_told = False
    while True:
        with ExitStack() as attempt:
            taken: dict[Gpu, int] = {}
            for gpu in gpus:
                lock = _lock(folder, gpu, attempt) if len(taken) < count else None
                if lock is not None:
                    taken[gpu] = lock
            if len(taken) == count:
                stack.push(attempt.pop_all())
                return taken
        if not is_told:
            logger.info("waiting for %d of %d GPUs, which other jobs have", count, len(gpus))
            is_told = True
        with prompt_sigterm():
            end_unused()  # a server of this workflow that waits for a job may have them
            time.sleep(POLL_S)


def _lock(folder: Path, gpu: Gpu, stack: ExitStack) -> int | None:
    """The open and locked file of a GPU; None while another job has it."""
    file = folder / re.sub(r"[^\w.-]", "_", gpu.uuid)
    lock = _open(file)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    stack.callback(os.close, lock)
    return lock


def _open(file: Path) -> int:
    """Open for reading, which is enough to lock, so that any user's file serves every user."""
    try:
        if not file.parent.exists():
            file.parent.mkdir(exist_ok=True)
            file.parent.chmod(0o1777)
        try:
            return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return os.open(file, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise TinsmithError(
            f"{file} must be a file that this user can read, because jobs that share GPUs lock it:"
            f" {error.strerror}"
        ) from error


def _too_few(count: int, found: int) -> str:
    if job := os.environ.get("SLURM_JOB_ID"):
        where = f"SLURM gave job {job} {found} on {os.uname().nodename}"
        remedy = "look at the partition's GPUs (sinfo -o '%P %G') and at resources.gpu_model"
    elif VARIABLE in os.environ:
        where = f"{VARIABLE} names {found}"
        remedy = f"unset {VARIABLE}, or lower backend.gpus"
    else:
        where = f"nvidia-smi shows {found} on {os.uname().nodename}"
        remedy = "lower backend.gpus (0 is the CPU), or run where the GPUs are"
    return f"backend.gpus asks for {count}, but {where}: {remedy}"
