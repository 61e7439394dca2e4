"""How speed and memory of the local backend grow with what it is asked.

`python -m benchmarks.growth`. A training step and sampling, through SDK and HTTP, by size of the
model, length of the sequences, sequences at once, and adapters that are trained or sampled from at
the same time; and the most memory that a server of each size ever held. No peer stands beside it:
ratios are to the last point of a line.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import psutil
import tinker
from tinker import types

from benchmarks.arithmetic import RANK, Weights, count_weights
from benchmarks.clock import Contender, measure
from benchmarks.entry import run
from benchmarks.harness import (
    MODEL_NAME,
    Arguments,
    Case,
    Figure,
    parse_arguments,
    report,
    scratch_model,
    server,
)
from benchmarks.start import peak_bytes
from benchmarks.work import (
    Ask,
    Row,
    datum,
    even_asks,
    even_rows,
    sample,
    sampling_client,
    train,
)

SIZES = {"cpu": ("8m", "29m", "100m"), "cuda": ("0.6b", "4b", "8b")}
ROW_TOKENS, ASK_TOKENS = 128, 32
STEP_TOKENS = 4096
LENGTHS, COMPLETIONS = (64, 256, 1024), (32, 128)
BATCHES = (1, 8, 64)
ADAPTERS = (1, 4, 16)
NUM_ROWS, NUM_ASKS = 16, 64
AXES = ("model", "sequence length", "sequences", "adapters")


@dataclass(frozen=True, slots=True)
class Served:
    """A server of one size of model."""

    client: tinker.ServiceClient
    weights: Weights
    pid: int

    def training(self, name: str, rows: Sequence[Row], num_adapters: int = 1) -> Contender:
        """A step of as many adapters on the same number of rows each."""
        clients = [self._adapter(seed) for seed in range(num_adapters)]
        data: list[types.Datum] = [datum(row) for row in rows]
        work = [(client, data[seed::num_adapters]) for seed, client in enumerate(clients)]
        num_tokens = sum(len(row.tokens) for row in rows)
        flops = self.weights.training_flops(rows)
        return Contender(name, partial(train, *work), num_tokens, flops)

    def sampling(self, name: str, asks: Sequence[Ask], num_adapters: int = 1) -> Contender:
        """Completions from as many adapters, the same number of each."""
        clients = [sampling_client(self._adapter(seed)) for seed in range(num_adapters)]
        work = [(client, asks[seed::num_adapters]) for seed, client in enumerate(clients)]
        num_tokens = sum(ask.num_tokens for ask in asks)
        flops = self.weights.sampling_flops(asks)
        return Contender(name, partial(sample, *work), num_tokens, flops)

    def _adapter(self, seed: int) -> tinker.TrainingClient:
        return self.client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=seed).result()


def main() -> None:
    arguments = parse_arguments("growth of speed and memory", AXES, has_trial=False)
    with ExitStack() as stack:
        sizes = SIZES[arguments.device] if "model" in arguments.cases else ()
        presets = {preset: replace(arguments, preset=preset) for preset in sizes}
        presets.setdefault(arguments.preset, arguments)
        served = {preset: _serve(chosen, stack) for preset, chosen in presets.items()}
        lines = _lines(arguments, served)
        cases = [
            Case(name, measure(name, make(), arguments.repeats)) for name, make in lines.items()
        ]
        peaks = [
            Figure(f"resident, peak, {preset}", peak_bytes(one.pid) / 1e6, "MB")
            for preset, one in served.items()
        ]
    report("Growth", arguments, cases, peaks)


def _serve(arguments: Arguments, stack: ExitStack) -> Served:
    scratch, model = stack.enter_context(scratch_model(arguments))
    before = set(psutil.Process().children())
    endpoint = stack.enter_context(server(arguments, scratch, {MODEL_NAME: str(model)}))
    [process] = set(psutil.Process().children()) - before
    client = tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key)
    return Served(stack.enter_context(client), count_weights(model), process.pid)


def _lines(
    arguments: Arguments, served: Mapping[str, Served]
) -> dict[str, Callable[[], list[Contender]]]:
    """The points of every line that was asked for."""
    one = served[arguments.preset]
    rows, asks = even_rows(NUM_ROWS, ROW_TOKENS), even_asks(NUM_ASKS, ASK_TOKENS)
    lines: dict[str, Callable[[], list[Contender]]] = {
        "model, training": lambda: [s.training(name, rows) for name, s in served.items()],
        "model, sampling": lambda: [s.sampling(name, asks) for name, s in served.items()],
        "sequence length, training": lambda: [
            one.training(f"{size}", even_rows(STEP_TOKENS // size, size)) for size in LENGTHS
        ],
        "sequence length, sampling": lambda: [
            one.sampling(f"{32 + size}", even_asks(NUM_ROWS, size)) for size in COMPLETIONS
        ],
        "sequences, training": lambda: [
            one.training(f"{count}", even_rows(count, ROW_TOKENS)) for count in BATCHES
        ],
        "sequences, sampling": lambda: [
            one.sampling(f"{count}", even_asks(count, ASK_TOKENS)) for count in BATCHES
        ],
        "adapters, training": lambda: [one.training(f"{n}", rows, n) for n in ADAPTERS],
        "adapters, sampling": lambda: [one.sampling(f"{n}", asks, n) for n in ADAPTERS],
    }
    return {name: make for name, make in lines.items() if name.split(",")[0] in arguments.cases}


if __name__ == "__main__":
    run(main)
