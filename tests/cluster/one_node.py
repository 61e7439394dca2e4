"""A real SLURM of one node on this machine: munge, slurmctld and slurmd, with fake GPUs.

    python -m tests.cluster.one_node FOLDER

runs one until Ctrl-C. It needs root, and /etc/slurm for itself: `srun` in a job looks there.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
GPU_MODEL, NUM_GPUS = "gh200", 2
# More than the machine may have, because the jobs of tests mostly wait.
NUM_CORES, MEMORY_MB = 8, 64000
START_S = 30
# Jobs of the low partition make way for those of the urgent one, those of the calm one do not.
# KillWait is what SIGTERM gives a job at its time limit, GraceTime one that is preempted.
SLURM_CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmdPort={daemon_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=600
KillWait=15
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:{model}:{gpus}
PartitionName=low Nodes={host} Default=YES MaxTime=1-00:00:00 PriorityTier=1 GraceTime=15
PartitionName=calm Nodes={host} MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=off
PartitionName=urgent Nodes={host} MaxTime=01:00:00 PriorityTier=10 PreemptMode=off
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where one can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"SLURM is not installed (no {absent[0]}); envs/install_debian.sh installs it"
    if os.geteuid() != 0:
        return "the daemons of SLURM need root"
    file = CONFIGURATION / "slurm.conf"
    if file.exists() and not file.is_symlink():
        return f"{file} belongs to a cluster"
    return None


@contextmanager
def one_node_cluster(folder: Path) -> Iterator[None]:
    """A cluster as long as the block; another on this machine waits until it is gone."""
    with _only_one():
        left = CONFIGURATION / "slurm.conf"
        if left.is_symlink():  # by tests that were killed
            _stop(left.readlink().parent)
        for name in ("state", "spool", "gpus"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        try:
            _configure(folder)
            _start(folder)
            yield
        finally:
            _stop(folder)


@contextmanager
def _only_one() -> Iterator[None]:
    with Path("/tmp/tinsmith-one-node.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _configure(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    text = SLURM_CONF.format(
        host=host, folder=folder, port=_free_port(), daemon_port=_free_port(), cores=NUM_CORES,
        memory=MEMORY_MB, model=GPU_MODEL, gpus=NUM_GPUS,
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    lines = []
    for index in range(NUM_GPUS):
        # A device node: for a plain file SLURM sets no CUDA_VISIBLE_DEVICES.
        device = folder / "gpus" / f"fake{index}"
        os.mknod(device, 0o20666, os.makedev(1, 3))
        lines.append(f"NodeName={host} Name=gpu Type={GPU_MODEL} File={device}\n")
    (folder / "gres.conf").write_text("".join(lines))
    CONFIGURATION.mkdir(exist_ok=True)
    for name in ("slurm.conf", "gres.conf"):
        link = CONFIGURATION / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder / name)


def _start(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid",
             "log-file": folder / "munged.log", "seed-file": folder / "munged.seed"}  # fmt: skip
    _run("munged", "--force", *(f"--{name}={file}" for name, file in files.items()))
    _run("slurmctld")
    _run("slurmd")
    end = time.monotonic() + START_S
    while "idle" not in _said("sinfo", "--noheader", "--format=%T"):
        if time.monotonic() > end:
            logs = "\n".join(file.read_text()[-2000:] for file in folder.glob("*.log"))
            raise RuntimeError(f"the cluster is not up after {START_S} s:\n{logs}")
        time.sleep(0.2)


def _stop(folder: Path) -> None:
    _said("scancel", "--user=root", "--signal=KILL", "--full")
    _said("scancel", "--user=root")
    for name in ("slurmd", "slurmctld", "munged"):
        file = folder / f"{name}.pid"
        if file.exists():
            _end(int(file.read_text()))
    for name in ("slurm.conf", "gres.conf"):
        (CONFIGURATION / name).unlink(missing_ok=True)


def _end(pid: int) -> None:
    for number in (15, 9):
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    with one_node_cluster(Path(sys.argv[1]).resolve()):
        print(_said("sinfo"), flush=True)
        with suppress(KeyboardInterrupt):
            time.sleep(1e9)
