"""The same SDK program against this server and SkyRL's, in one run.

`python -m benchmarks.skyrl`. The program (benchmarks/sdk_program.py) runs with SkyRL's SDK, the
newest that it can serve, against both: a training step on 64 sequences of 64 to 192 tokens, and
sampling 128 tokens from each of 64 ragged prompts, with an adapter of rank 32. SkyRL computes with
JAX, in float32. It compiles for each shape that it meets: for each rounded length of a batch's
longest prompt, and each longest completion, which is why all are of one length here. The warm-up
meets the shapes of the work.
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import psutil

from benchmarks.arithmetic import count_weights
from benchmarks.clock import Measurement
from benchmarks.entry import run
from benchmarks.harness import (
    OURS,
    ROOT,
    Arguments,
    Case,
    Figure,
    find_python,
    parse_arguments,
    report,
    scratch_model,
    server,
)
from benchmarks.sdk_program import SAMPLING, TRAINING
from benchmarks.start import peak_bytes
from benchmarks.work import full_asks, ragged_rows
from tinsmith.errors import TinsmithError

PEER = "SkyRL's server (tinker SDK)"
# Its defaults hold 32 adapters and whole batches at once, which a machine of 16 GB cannot.
SKYRL = {
    "max_lora_adapters": 2,
    "max_lora_rank": 32,
    "train_micro_batch_size": 8,
    "sample_max_num_sequences": 64,
}
READY_S = 120


def main() -> None:
    arguments = parse_arguments("one SDK program against this server and SkyRL's")
    if arguments.device != "cpu":
        raise TinsmithError(
            f"--device must be cpu for SkyRL, got {arguments.device}: envs/skyrl.txt has JAX for "
            "the CPU alone"
        )
    python = find_python("skyrl")
    with (
        scratch_model(arguments) as (scratch, model),
        server(arguments, scratch, {str(model): str(model)}) as ours,
    ):
        weights = count_weights(model)
        [our_process] = psutil.Process().children()
        with _skyrl(python, model, scratch / "skyrl", arguments) as (url, their_process):
            servers = {OURS: (ours.base_url, ours.api_key), PEER: (url, "tml-unused")}
            results = _run(python, servers, model, arguments)
            processes = {OURS: our_process, PEER: their_process}
            figures = [
                Figure(f"resident, peak, {name}", _peak_bytes(process) / 1e6, "MB")
                for name, process in processes.items()
            ]
    flops = {
        TRAINING: weights.training_flops(ragged_rows()[:: arguments.every]),
        SAMPLING: weights.sampling_flops(full_asks()[:: arguments.every]),
    }
    cases = [
        Case(name, [replace(side, flops=flops[name]) for side in sides])
        for name, sides in results.items()
    ]
    report("One SDK program, two servers", arguments, cases, figures)


@contextmanager
def _skyrl(
    python: Path, model: Path, scratch: Path, arguments: Arguments
) -> Iterator[tuple[str, psutil.Process]]:
    """SkyRL's server on the model: its address and its process."""
    scratch.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "base_model": str(model),
        "backend": "jax",
        "backend_config": SKYRL,
        "checkpoints_base": str(scratch / "checkpoints"),
        "database_url": f"sqlite:///{scratch / 'tinker.db'}",
    }
    command = [python, "-m", "benchmarks.skyrl_server", json.dumps(config), str(port)]
    command.append(str(arguments.threads))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = scratch / "server.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT)
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(url, process, log)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/v1/healthz").close()
        except URLError:
            time.sleep(0.5)
        else:
            return
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-20:]
    raise TinsmithError("SkyRL's server did not start; it said last: " + "\n".join(last))


def _run(
    python: Path, servers: Mapping[str, tuple[str, str]], model: Path, arguments: Arguments
) -> dict[str, list[Measurement]]:
    """The program's measurements of each case; its progress goes to standard error."""
    order = {
        "servers": servers,
        "model": str(model),
        "repeats": arguments.repeats,
        "every": arguments.every,
    }
    done = subprocess.run(
        [python, "-m", "benchmarks.sdk_program"],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
    )
    results = json.loads(done.stdout)
    return {case: [Measurement(**side) for side in sides] for case, sides in results.items()}


def _peak_bytes(process: psutil.Process) -> int:
    """The most that a server's processes ever had in memory."""
    return sum(peak_bytes(one.pid) for one in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    run(main)
