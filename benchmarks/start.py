"""Start: from the command to a server that accepts requests, and what it then holds in memory.

`python -m benchmarks.start`. The memory is that of the server's process: when it is ready, and the
most it ever held by the end of a training step on 16 sequences and 64 completions; on a GPU also
what it then has of the GPU's memory, which torch keeps once it has needed it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import tinker

from benchmarks.arithmetic import RANK
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    Arguments,
    Figure,
    parse_arguments,
    report,
    scratch_model,
    server,
)
from benchmarks.work import Ask, datum, ragged_rows, sample, sampling_client, train
from tinsmith.gpus import ask_driver


@dataclass(frozen=True, slots=True)
class Start:
    """One server's start, and its memory when ready and at most."""

    ready_s: float
    ready_bytes: int
    peak_bytes: int
    gpu_bytes: float


def main() -> None:
    arguments = parse_arguments("start to ready, and memory", has_trial=False)
    with scratch_model(arguments) as (scratch, model):
        starts = [
            _start(arguments, scratch / str(number), model)
            for number in range(arguments.repeats + 1)
        ][1:]  # the first fills the file cache
    figures = [
        Figure("start to ready", median(start.ready_s for start in starts), "s"),
        Figure("resident, ready", median(start.ready_bytes for start in starts) / 1e6, "MB"),
        Figure("resident, peak", median(start.peak_bytes for start in starts) / 1e6, "MB"),
    ]
    if arguments.device != "cpu":
        used = median(start.gpu_bytes for start in starts)
        figures.append(Figure("GPU memory, after the work", used / 1e6, "MB"))
    report("Start and memory of the server", arguments, figures=figures)


def _start(arguments: Arguments, scratch: Path, model: Path) -> Start:
    scratch.mkdir()
    used_before = _gpu_bytes()
    begin = time.perf_counter()
    with server(arguments, scratch, {MODEL_NAME: str(model)}):
        ready_s = time.perf_counter() - begin
        [process] = psutil.Process().children()
        ready_bytes = process.memory_info().rss
        with tinker.ServiceClient() as client:
            training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
            train((training, [datum(row) for row in ragged_rows()[::4]]))
            sample((sampling_client(training), [Ask([1, 2, 3], 64, 32)]))
        used = _gpu_bytes() - used_before
        return Start(ready_s, ready_bytes, peak_bytes(process.pid), used)


def _gpu_bytes() -> float:
    """Memory in use on all GPUs; 0 where there is none."""
    used = [gpu["memory.used"] for gpu in ask_driver("memory.used")]
    return sum(float(one.removesuffix("MiB")) for one in used) * (1 << 20)


def peak_bytes(pid: int) -> int:
    """The most that a process ever had in memory, as Linux counts it."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/{pid}/status names no VmHWM")


if __name__ == "__main__":
    run(main)
