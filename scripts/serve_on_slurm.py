"""Start a server on a node of the cluster, for pipelines and programs anywhere that reach it.

    python -m scripts.serve_on_slurm --model NAME=DIRECTORY --partition gpu --gpus 1
    python -m scripts.serve_on_slurm --model NAME=DIRECTORY -- --token-budget 2048

What stands behind -- goes to `tinsmith serve`. The folder of --folder, on the shared file system,
holds the key (which nobody else may read) and the log. Prints what the config needs once the server
answers; the server stays until its time is up or the job is cancelled.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tinsmith.cli import KEY_VARIABLE, new_api_key
from tinsmith.errors import TinsmithError

READY = re.compile(r"^Tinsmith serves .* at http://\S+:(\d+)$", re.MULTILINE)
# Asked of the controller so often at first, and then less and less often.
POLL_S, MAX_POLL_S = 1.0, 10.0


def main() -> int:
    """Parse the command line, submit, wait for the server; returns the exit code."""
    words = sys.argv[1:]
    options = words[words.index("--") + 1 :] if "--" in words else []
    args = _parser().parse_args(words[: words.index("--")] if "--" in words else words)
    try:
        key_file = _write_key(args.folder)
        job = _submit(args, key_file, options)
        print(f"job {job} is submitted; its log: {_log(args.folder, job)}", file=sys.stderr)
        url = _await_ready(job, _log(args.folder, job))
    except TinsmithError as error:
        print(f"serve_on_slurm: {error}", file=sys.stderr)
        return 2
    print(f"backend: {{kind: remote, url: {url}}}    # in config.yaml")
    print(f"export TINKER_API_KEY=$(cat {shlex.quote(str(key_file))})    # in the shell")
    print(f"scancel {job}    # stops the server")
    return 0


def _write_key(folder: Path) -> Path:
    """The key's file: what the environment says, or what the last server here had, or a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / "key"
    known = file.read_text(encoding="utf-8").strip() if file.exists() else None
    key = os.environ.get(KEY_VARIABLE) or known or new_api_key()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(f"{key}\n")
    return file


def _submit(args: argparse.Namespace, key_file: Path, options: Sequence[str]) -> str:
    """Submit the server; SLURM's number of the job."""
    models = [f"--model={model}" for model in args.model]
    serve = [sys.executable, "-m", "tinsmith.cli", "serve", "--host=0.0.0.0", f"--port={args.port}"]
    command = shlex.join([*serve, *models, f"--store={args.store}", *options])
    # Not on the command line, which every user of the node can read.
    script = f"export {KEY_VARIABLE}=$(cat {shlex.quote(str(key_file))})\nexec {command}\n"
    asked = {"job-name": "tinsmith-serve", "output": _log(args.folder, "%j"), "ntasks": 1}
    asked |= {"cpus-per-task": args.cores, "mem": args.mem_mb, "time": args.runtime}
    asked |= {"partition": args.partition, "account": args.account}
    if args.gpus:
        asked["gpus"] = f"{args.gpu_model}:{args.gpus}" if args.gpu_model else args.gpus
    flags = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *flags],
            input=f"#!/bin/sh\n{script}",
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise TinsmithError("sbatch not found: log in where jobs are submitted") from error
    if done.returncode != 0:
        raise TinsmithError(f"SLURM refuses the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def _await_ready(job: str, log: Path) -> str:
    """The server's address, once it says that it serves."""
    wait_s, told = POLL_S, ""
    while True:
        listed = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%B|%r"]
        said = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.strip()
        state, _, rest = said.partition("|")
        node, _, reason = rest.partition("|")
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if state == "RUNNING" and (ready := READY.search(text)):
            return f"http://{node}:{ready[1]}"
        if state == "PENDING" and reason != told:
            print(f"job {job} waits: {reason}", file=sys.stderr)
            told = reason
        elif state not in ("PENDING", "RUNNING", "CONFIGURING", ""):
            last = " ".join(text.strip().splitlines()[-1:]) or "it said nothing"
            raise TinsmithError(f"job {job} has ended, {state}: {last} (log: {log})")
        time.sleep(wait_s)
        wait_s = POLL_S if state == "RUNNING" else min(MAX_POLL_S, 1.5 * wait_s)


def _log(folder: Path, job: str) -> Path:
    return folder.resolve() / f"{job}.log"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="[NAME=]DIRECTORY")
    add("--store", default="store", help="on the shared file system (default: store)")
    add("--folder", type=Path, default=Path("work/server"), help="default: work/server")
    add("--port", type=int, default=0, help="0 takes a free one (default)")
    add("--partition", help="default: the cluster's")
    add("--account", help="default: yours")
    add("--gpus", type=int, default=0, help="default: 0, the CPU")
    add("--gpu-model", help="as SLURM calls it, like gh200 (default: any)")
    add("--cores", type=int, default=4)
    add("--mem-mb", type=int, default=16000)
    add("--runtime", type=int, default=1440, help="minutes (default: a day)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
