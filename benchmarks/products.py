"""How much of the machine's matrix-multiply rate a training step and sampling reach.

`python -m benchmarks.products`. The rate is that of products with a packed weight of the model's
widest layer, measured here in the same run. The work counted is that of the matrix products with
the model's weights alone: 2 P for each token of a forward, 2 P more for a backward to a frozen
weight, and 6 for each weight of the adapter (Kaplan et al. 2020, table 1, without attention).
"""

import time
from collections.abc import Callable
from pathlib import Path

import tinker
import torch
from safetensors import safe_open
from tinker import types

from benchmarks.harness import MODEL_NAME, hardware, parse_arguments, service
from benchmarks.sampling import ragged as sampled
from benchmarks.sampling import sample
from benchmarks.training import datum
from benchmarks.training import ragged as trained
from tinsmith.files import write_json

RANK = 32
ROWS = (1, 8, 64, 1024)


def main() -> None:
    arguments = parse_arguments("the share of the machine's matrix-multiply rate")
    with service(arguments) as (client, directory):
        base, adapter = _num_weights(directory)
        rates = {rows: _product_rate(rows) for rows in ROWS}
        training = client.create_lora_training_client(MODEL_NAME, rank=RANK, seed=0).result()
        rows = trained()[:: arguments.every]
        data = [datum(row) for row in rows]
        tokens = sum(len(row.tokens) - 1 for row in rows)
        asks = sampled()[:: arguments.every]
        sampler = training.save_weights_and_get_sampling_client()
        passed = sum(len(ask.prompt) + ask.max_tokens - 1 for ask in asks)
        step_s = _median_s(lambda: _step(training, data), arguments.repeats)
        sampling_s = _median_s(lambda: sample(sampler, asks), arguments.repeats)
    best = max(rates.values())
    figures = {
        "products, GFLOP/s by rows": {str(rows): rate / 1e9 for rows, rate in rates.items()},
        "training step, s": step_s,
        "training step, share": tokens * (4 * base + 6 * adapter) / step_s / best,
        "sampling, s": sampling_s,
        "sampling, share": passed * 2 * base / sampling_s / best,
    }
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    for name, value in figures.items():
        print(f"{name}: {value}")
    if arguments.json:
        write_json(arguments.json, {"hardware": hardware(), "figures": figures})


def _num_weights(directory: Path) -> tuple[int, int]:
    """Weights that a token is multiplied by, the tied unembedding once, and an adapter's."""
    shapes: dict[str, list[int]] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 not a dict
    if "lm_head.weight" in shapes:
        del shapes["model.embed_tokens.weight"]
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    return sum(m * n for m, n in matrices), sum(RANK * (m + n) for m, n in matrices)


def _product_rate(rows: int, inputs: int = 512, outputs: int = 1536) -> float:
    """Floating-point operations a second of products with one packed weight."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def products() -> None:
        for _ in range(max(1, 4096 // rows)):
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    with torch.inference_mode():
        work = 2 * rows * inputs * outputs * max(1, 4096 // rows)
        return work / _median_s(products, 5)


def _step(training: tinker.TrainingClient, data: list[types.Datum]) -> None:
    scored = training.forward_backward(data, "cross_entropy")
    stepped = training.optim_step(types.AdamParams(learning_rate=1e-5))
    scored.result()
    stepped.result()


def _median_s(run: Callable[[], None], repeats: int) -> float:
    """Median seconds after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


if __name__ == "__main__":
    main()
