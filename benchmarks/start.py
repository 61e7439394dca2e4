"""Start: from the command to a server that accepts requests, and what it then holds in memory.

`python -m benchmarks.start`. The memory is that of the server's process: when it is ready, and the
most it ever held by the end of a training step and 64 completions.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import tinker
from tinker import types

from benchmarks.harness import MODEL_NAME, hardware, make_model
from tinsmith.files import write_json
from tinsmith.serving import Endpoint, local_server


@dataclass(frozen=True, slots=True)
class Start:
    """One server's start, and its memory when ready and at most."""

    ready_s: float
    ready_bytes: int
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description="start to ready, and memory")
    parser.add_argument("--model", type=Path, help="directory (default: a random 29M Qwen3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the server")
    parser.add_argument("--repeats", type=int, default=3, help="servers started")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or make_model(Path(scratch) / "model")
        starts = [
            _start(model, Path(scratch) / str(number), arguments.threads)
            for number in range(arguments.repeats + 1)
        ][1:]  # the first fills the file cache
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    print(f"{arguments.threads} threads, medians of {arguments.repeats} after a warm-up\n")
    print(f"start to ready: {statistics.median(start.ready_s for start in starts):.2f} s")
    for name in ("ready_bytes", "peak_bytes"):
        size = statistics.median(getattr(start, name) for start in starts)
        print(f"resident, {name.removesuffix('_bytes')}: {size / 1e6:.0f} MB")
    if arguments.json:
        figures = [asdict(start) for start in starts]
        write_json(arguments.json, {"hardware": hardware(), "starts": figures})


def _start(model: Path, scratch: Path, threads: int) -> Start:
    begin = time.perf_counter()
    with _server(model, scratch, threads) as endpoint:
        ready_s = time.perf_counter() - begin
        [server] = psutil.Process().children()
        ready_bytes = server.memory_info().rss
        _work(endpoint)
        return Start(ready_s, ready_bytes, _peak_bytes(server.pid))


@contextmanager
def _server(model: Path, scratch: Path, threads: int) -> Iterator[Endpoint]:
    options = [f"--threads={threads}", f"--store={scratch / 'store'}"]
    scratch.mkdir()
    with local_server({MODEL_NAME: str(model)}, options, log=scratch / "log") as endpoint:
        yield endpoint


def _work(endpoint: Endpoint) -> None:
    rng = random.Random(0)
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        training = client.create_lora_training_client(MODEL_NAME, rank=32, seed=0).result()
        rows = [[rng.randrange(256) for _ in range(rng.randint(64, 192))] for _ in range(16)]
        data = [
            types.Datum(
                model_input=types.ModelInput.from_ints(row[:-1]),
                loss_fn_inputs={
                    "target_tokens": types.TensorData.from_numpy(np.array(row[1:])),
                    "weights": types.TensorData.from_numpy(np.ones(len(row) - 1, np.float32)),
                },
            )
            for row in rows
        ]
        training.forward_backward(data, "cross_entropy").result()
        training.optim_step(types.AdamParams(learning_rate=1e-5)).result()
        sampler = training.save_weights_and_get_sampling_client().result()
        params = types.SamplingParams(max_tokens=32, stop=[])
        sampler.sample(types.ModelInput.from_ints([1, 2, 3]), 64, params).result()


def _peak_bytes(pid: int) -> int:
    """The most that a process ever had in memory, as Linux counts it."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/{pid}/status names no VmHWM")


if __name__ == "__main__":
    main()
