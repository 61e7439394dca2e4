"""Round trip: an empty-handed call (optim_step on a tiny model) through SDK and HTTP.

`python -m benchmarks.round_trip`. The call is submitted, run and fetched, which is two HTTP
requests. `GET /healthz` over a connection that is kept open stands beside it: what one HTTP request
costs that nobody computes for.
"""

import argparse
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import tinker
from tinker import types

from benchmarks.harness import MODEL_NAME, hardware
from tests.models import make_model
from tinsmith.files import write_json
from tinsmith.serving import local_server

TARGET_MS = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description="median time of an empty-handed call")
    parser.add_argument("--calls", type=int, default=300, help="timed calls of each kind")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the server")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model", "qwen3")
        options = [f"--threads={arguments.threads}", f"--store={scratch}/store"]
        log = Path(scratch) / "server.log"
        with local_server({MODEL_NAME: str(model)}, options, log=log) as endpoint:
            os.environ.update(endpoint.environment())
            figures = {
                "optim_step, through the SDK": _time(_optim_step(), arguments.calls),
                "GET /healthz": _time(_health(endpoint.base_url), arguments.calls),
            }
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    print(f"\n{'call':<32}{'median ms':>11}{'90 % ms':>9}")
    for name, times_ms in figures.items():
        slow = statistics.quantiles(times_ms, n=10)[-1]
        print(f"{name:<32}{statistics.median(times_ms):>11.2f}{slow:>9.2f}")
    print(f"\ntarget for optim_step on two cores: {TARGET_MS:g} ms")
    if arguments.json:
        write_json(arguments.json, {"hardware": hardware(), "milliseconds": figures})


def _time(call: Callable[[], object], calls: int) -> list[float]:
    """Milliseconds of each call, after some that warm up."""
    times_ms = []
    for number in range(calls + 20):
        start = time.perf_counter()
        call()
        if number >= 20:
            times_ms.append(1e3 * (time.perf_counter() - start))
    return times_ms


def _optim_step() -> Callable[[], object]:
    service = tinker.ServiceClient()
    trainer = service.create_lora_training_client(MODEL_NAME, rank=1, seed=0).result()
    params = types.AdamParams(learning_rate=0.0)
    return lambda: trainer.optim_step(params).result()


def _health(url: str) -> Callable[[], object]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def ask() -> None:
        connection.request("GET", "/healthz")
        connection.getresponse().read()

    return ask


if __name__ == "__main__":
    main()
