"""The Snakemake call that a job belongs to, as its environment names it to the job."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import psutil

VARIABLE = "TINSMITH_WORKFLOW"
CLOCK_S = 3


@dataclass(frozen=True, slots=True)
class Workflow:
    """A process on a host, in a job of SLURM or in none, whose servers stay up `keep_s` seconds
    without a job."""

    host: str
    pid: int
    created: float
    slurm_job: str | None
    keep_s: int

    def is_alive(self) -> bool:
        return is_alive(self.pid, self.created)


def announce(keep_s: int) -> dict[str, str]:
    """The variable by which the jobs that this process starts know it."""
    pid = os.getpid()
    created = psutil.Process(pid).create_time()
    workflow = Workflow(os.uname().nodename, pid, created, os.environ.get("SLURM_JOB_ID"), keep_s)
    return {VARIABLE: json.dumps(asdict(workflow))}


def current_workflow(environment: Mapping[str, str]) -> Workflow | None:
    """The workflow whose servers this job may use; None for a command from a terminal, in a job of
    SLURM that is not the workflow's own, and in a container, which ends what it started."""
    text = environment.get(VARIABLE)
    if not text or {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & environment.keys():
        return None
    workflow = Workflow(**json.loads(text))
    is_here = workflow.host == os.uname().nodename
    is_same_job = workflow.slurm_job == environment.get("SLURM_JOB_ID")
    return workflow if is_here and is_same_job and workflow.is_alive() else None


def is_alive(pid: int, created: float) -> bool:
    """Whether a process still runs that was created then; one with the same number is another."""
    try:
        process = psutil.Process(pid)
        # The clock may have been set meanwhile, by a little.
        return (
            abs(process.create_time() - created) < CLOCK_S
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
