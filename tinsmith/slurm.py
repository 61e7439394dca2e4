"""Has this cluster what the jobs will ask for? Asked of SLURM before a job is submitted."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tinsmith.errors import TinsmithError
from tinsmith.plan import Plan
from tinsmith.resources import DEFAULTS, MAX_FACTOR

PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun")
PLUGIN = "snakemake-executor-plugin-slurm"
# Seconds for which squeue must remember a finished job, to be asked about it between two checks.
MIN_JOB_AGE_S = 200
LOCAL_FILE_SYSTEMS = {"ext2/ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what is wrong with it; None if nothing is."""

    subject: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a Snakemake profile says of SLURM."""

    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Profile":
        file = folder / "config.yaml"
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise TinsmithError(f"{file} must be a Snakemake profile: {error}") from error
        if not isinstance(values, dict) or values.get("executor") != "slurm":
            raise TinsmithError(f"{file} must have the line `executor: slurm`")
        return cls(values)

    def resource(self, rule: str, name: str) -> Any:
        """What the profile sets for a rule's jobs, or for all."""
        own = (self.values.get("set-resources") or {}).get(rule, {})
        return own.get(name, (self.values.get("default-resources") or {}).get(name))

    def threads(self, rule: str) -> int | None:
        pairs = (str(entry).partition("=") for entry in self.values.get("set-threads") or [])
        return next((int(number) for name, _, number in pairs if name == rule), None)


def check_slurm(profile: Profile, plan: Plan, folder: Path) -> Iterator[Finding]:
    """Everything, the cause before what follows from it."""
    programs = _programs()
    yield programs
    if programs.fault:
        return
    yield _controller()
    yield _plugin()
    yield _status_command(profile)
    for rule in DEFAULTS:
        yield from _rule(rule, profile, plan)
    yield _shared(folder)


def _programs() -> Finding:
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    fault = f"{', '.join(absent)} not found: log in where jobs are submitted" if absent else None
    return Finding("SLURM's programs", fault)


def _controller() -> Finding:
    done = _run("scontrol", "ping")
    if done.returncode != 0 or "UP" not in done.stdout:
        return Finding("slurmctld", f"does not answer: {done.stdout}{done.stderr}".strip())
    if "SLURM_JOB_ID" in os.environ:
        return Finding("slurmctld", "this is a job of SLURM itself; run Snakemake outside")
    return Finding("slurmctld")


def _plugin() -> Finding:
    subject = f"Snakemake's plugin {PLUGIN}"
    try:
        importlib.metadata.version(PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        return Finding(subject, "is not installed: make slurm")
    return Finding(subject)


def _status_command(profile: Profile) -> Finding:
    said = _run("scontrol", "show", "config").stdout
    settings = dict(re.findall(r"^(\w+)\s*= (\S+)", said, re.MULTILINE))
    command = profile.values.get("slurm-status-command", "sacct")
    subject = f"slurm-status-command: {command}"
    if command == "sacct":
        if settings.get("AccountingStorageType", "").endswith("none") or _run("sacct").returncode:
            return Finding(subject, "there is no accounting here: write squeue")
        return Finding(subject)
    age_s = int(settings.get("MinJobAge", "0"))
    if age_s < MIN_JOB_AGE_S:
        fault = f"forgets finished jobs after {age_s} s (MinJobAge): write sacct, where it works"
        return Finding(subject, fault)
    return Finding(subject)


def _rule(rule: str, profile: Profile, plan: Plan) -> Iterator[Finding]:
    """The most that a job of the rule asks for, at its first and its last attempt."""
    retries = int(profile.values.get("retries", 0))
    everyone = SimpleNamespace()
    request = plan.request(rule)
    for attempt in sorted({1, min(1 + retries, MAX_FACTOR)}):
        asked = {
            "cores": profile.threads(rule) or request.threads(everyone),
            "mem_mb": request.mem_mb(everyone, attempt),
            "runtime": request.runtime(everyone, attempt),
            "gpu": request.gpus(everyone),
            "gpu_model": request.gpu_model(everyone),
        }
        for name in asked:
            asked[name] = _own(profile, rule, name) or asked[name]
        subject = f"{rule}, attempt {attempt}: {_described(asked)}"
        yield Finding(subject, _fault(rule, profile, asked))


def _own(profile: Profile, rule: str, name: str) -> Any:
    value = profile.resource(rule, name)
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _described(asked: Mapping[str, Any]) -> str:
    gpus = f", {asked['gpu']} GPU {asked['gpu_model']}".rstrip() if asked["gpu"] else ""
    return f"{asked['cores']} cores, {asked['mem_mb']} MB, {asked['runtime']} minutes{gpus}"


def _fault(rule: str, profile: Profile, asked: Mapping[str, Any]) -> str | None:
    partition = profile.resource(rule, "slurm_partition") or ""
    if fault := _time_fault(partition, int(asked["runtime"])):
        return fault
    extra = str(profile.resource(rule, "slurm_extra") or "").strip("'\" ")
    if fault := _signal_fault(extra, int(asked["runtime"])):
        return fault
    command = [f"--cpus-per-task={asked['cores']}", f"--mem={asked['mem_mb']}"]
    command += [f"--time={asked['runtime']}", *extra.split()]
    for flag, name in (("partition", "slurm_partition"), ("account", "slurm_account"),
                       ("constraint", "constraint"), ("qos", "qos")):  # fmt: skip
        if value := profile.resource(rule, name):
            command.append(f"--{flag}={str(value).strip(chr(39))}")
    if asked["gpu"]:
        model = f"{asked['gpu_model']}:" if asked["gpu_model"] else ""
        command.append(f"--gpus={model}{asked['gpu']}")
    done = _run("sbatch", "--test-only", *command, "--wrap=true")
    if done.returncode == 0:
        return None
    said = " ".join(done.stderr.split()).replace("allocation failure: ", "")
    return f"SLURM refuses it: {said}; change resources: in the config, or the profile"


def _time_fault(partition: str, minutes: int) -> str | None:
    """A job beyond its partition's limit is not refused: it waits for ever."""
    said = _run("sinfo", "--noheader", "--format=%P|%a|%l").stdout
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 2]
    wanted = [row for row in rows if row[0].rstrip("*") == partition or
              (not partition and row[0].endswith("*"))]  # fmt: skip
    if not wanted:
        names = ", ".join(sorted({row[0].rstrip("*") for row in rows}))
        if not partition:
            return f"there is no default partition: name one, slurm_partition, of {names}"
        return f"there is no partition {partition!r}; there are {names}"
    name, state, limit = wanted[0]
    if state != "up":
        return f"partition {name.rstrip('*')} is {state}"
    most = _minutes(limit)
    if most is not None and minutes > most:
        return (
            f"partition {name.rstrip('*')} gives at most {most} minutes, and the job would wait for"
            " ever: set resources.max_runtime in the config"
        )
    return None


def _signal_fault(extra: str, minutes: int) -> str | None:
    """The warning may come a minute sooner than it says."""
    found = re.search(r"--signal=(?:\w+:)?\w+@(\d+)", extra)
    if found and int(found[1]) + 60 >= minutes * 60 / 2:
        return (
            f"{found[0]} warns before half of {minutes} minutes have passed: write a smaller number"
            " there, or give the rule more runtime"
        )
    return None


def _minutes(limit: str) -> int | None:
    """SLURM's [days-]hours:minutes:seconds in minutes; None for no limit."""
    if limit in ("infinite", "UNLIMITED"):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0, 0, 0, *parts][-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)


def _shared(folder: Path) -> Finding:
    """A folder on a local disk is seen by its own host alone."""
    kind = _run("stat", "--file-system", "--format=%T", str(folder)).stdout.strip()
    subject = f"{folder} on {kind}, seen by every node"
    nodes = set(_run("sinfo", "--noheader", "--format=%n").stdout.split())
    here = {os.uname().nodename, os.uname().nodename.partition(".")[0]}
    if kind in LOCAL_FILE_SYSTEMS and not nodes <= here:
        return Finding(subject, "this is a local disk: move the clone to a shared file system")
    return Finding(subject)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
