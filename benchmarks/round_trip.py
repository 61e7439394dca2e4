"""Round trip: an empty-handed call (optim_step on a tiny model) through SDK and HTTP.

`python -m benchmarks.round_trip`. The call is submitted, run and fetched, which is two HTTP
requests; 15 ms on two cores are the target. `GET /healthz` over a connection that is kept open
stands beside it: what one HTTP request costs that nobody computes for.
"""

import http.client
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import tinker
from tinker import types

from benchmarks.entry import run
from benchmarks.harness import MODEL_NAME, Figure, parse_arguments, report, server
from tests.models import make_model

WARM_UP = 20


def main() -> None:
    arguments = parse_arguments("time of an empty-handed call", repeats=300, has_trial=False)
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model", "qwen3")
        with server(arguments, Path(scratch), {MODEL_NAME: str(model)}) as endpoint:
            calls = {
                "optim_step, through the SDK": _optim_step(),
                "GET /healthz": _health(endpoint.base_url),
            }
            for name, call in calls.items():
                times_ms = _times_ms(call, arguments.repeats)
                slow = statistics.quantiles(times_ms, n=10)[-1]
                figures.append(Figure(f"{name}: median", statistics.median(times_ms), "ms"))
                figures.append(Figure(f"{name}: 90 %", slow, "ms"))
    report("Empty-handed calls, on a tiny model", arguments, figures=figures)


def _times_ms(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each call, after some that warm up."""
    times_ms = []
    for number in range(count + WARM_UP):
        start = time.perf_counter()
        call()
        if number >= WARM_UP:
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
    run(main)
