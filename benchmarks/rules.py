"""Rules: what Snakemake and set-up add to the work of each rule, in a pipeline of a tiny model.

`python -m benchmarks.rules`. The pipeline runs with --cores 1, with servers that the jobs leave to
each other and with a server for every job (backend.keep_s: 0). A rule's time is that of its command
as Snakemake takes it; its work, what run_metadata.json leaves of it without interpreter, imports
and server; and Snakemake's own time is what a run takes beyond its commands, over all jobs alike.
Beside them stands what any program takes that imports what a server and an export are made with.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.entry import run
from benchmarks.harness import ROOT, Arguments, Figure, parse_arguments, report
from tinsmith.errors import TinsmithError
from tinsmith.files import write_json

TARGET_S = 2.0
LIBRARIES = "from transformers import AutoModelForCausalLM; import peft"
SIDES = {"kept servers": 60, "a server a job": 0}
GRPO = {"kind": "grpo", "steps": 2, "problems_per_step": 8, "samples_per_problem": 4}
CONFIG: dict[str, Any] = {
    "model": {"kind": "tiny", "hidden_size": 64, "pretrain_steps": 120},
    "data": {"kind": "arithmetic", "digits": 1, "num_problems": 100, "held_out": 30},
    "task": {"kind": "arithmetic"},
    "lora": {"rank": 4},
    "stages": [{"kind": "supervised", "steps": 2, "eval_problems": 4}, GRPO | {"eval_problems": 4}],
    "evaluation": {"num_problems": 10, "samples_per_problem": 4},
}


@dataclass(frozen=True, slots=True)
class Job:
    """Seconds of one job of a rule: its command's, and those of its work."""

    rule: str
    command_s: float
    work_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One whole pipeline."""

    jobs: list[Job]
    snakemake_s: float


def main() -> None:
    arguments = parse_arguments("what Snakemake and set-up add to each rule", has_trial=False)
    imports_s = median([_import_s() for _ in range(arguments.repeats + 1)][1:])
    figures = [Figure("Python importing PyTorch, transformers and peft", imports_s, "s")]
    with tempfile.TemporaryDirectory() as scratch:
        for side, keep_s in SIDES.items():
            runs = [
                _run(arguments, Path(scratch) / f"{number}-{keep_s}", keep_s)
                for number in range(arguments.repeats + 1)
            ][1:]  # the first fills the file cache
            figures += _figures(side, runs)
    report(
        f"What is added to the work of each rule (target: {TARGET_S:g} s)",
        arguments,
        figures=figures,
    )


def _import_s() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
    return time.perf_counter() - start


def _figures(side: str, runs: list[Run]) -> list[Figure]:
    """The median over the runs of each rule's mean job."""
    snakemake_s = median(run.snakemake_s / len(run.jobs) for run in runs)
    figures = [Figure(f"{side}: Snakemake itself, per job", snakemake_s, "s")]
    for rule in dict.fromkeys(job.rule for job in runs[0].jobs):
        command_s = median(_mean(run, rule, "command_s") for run in runs)
        work_s = median(_mean(run, rule, "work_s") for run in runs)
        figures += [
            Figure(f"{side}: {rule}, wall", command_s + snakemake_s, "s"),
            Figure(f"{side}: {rule}, work", work_s, "s"),
            Figure(f"{side}: {rule}, added", command_s + snakemake_s - work_s, "s"),
        ]
    return figures


def _mean(run: Run, rule: str, name: str) -> float:
    values = [getattr(job, name) for job in run.jobs if job.rule == rule]
    return sum(values) / len(values)


def _run(arguments: Arguments, folder: Path, keep_s: int) -> Run:
    folder.mkdir()
    shutil.copytree(ROOT / "envs", folder / "envs")
    backend = {"threads": 1, "device": arguments.device, "keep_s": keep_s}
    write_json(folder / "config.json", CONFIG | {"backend": backend})
    command = [sys.executable, "-m", "snakemake", "--cores=1", f"--directory={folder}"]
    command += [f"--snakefile={ROOT / 'Snakefile'}", f"--configfile={folder / 'config.json'}"]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    elapsed_s = time.perf_counter() - start
    if done.returncode != 0:
        raise TinsmithError(f"the pipeline must run to its end, but: {done.stdout[-2000:]}")
    jobs = [_job(folder, path) for path in sorted(folder.rglob("*run_metadata.json"))]
    return Run(jobs, elapsed_s - sum(job.command_s for job in jobs))


def _job(folder: Path, metadata: Path) -> Job:
    record = json.loads(metadata.read_text(encoding="utf-8"))
    words = shlex.split(record["command"])
    log = folder / words[words.index("--log") + 1]
    head, row = (line.split("\t") for line in log.with_suffix(".tsv").read_text().splitlines())
    command_s = float(row[head.index("s")])
    return Job(record["rule"], command_s, record["duration_s"] - record["set_up_s"])


if __name__ == "__main__":
    run(main)
