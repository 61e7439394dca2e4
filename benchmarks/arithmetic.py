"""How fast the machine multiplies matrices, and how much of that the work needs.

The work counted is that of the matrix products with the model's weights alone: 2 P for each token
of a forward, 2 P more for a backward to a frozen weight, and 6 for each weight of the adapter
(Kaplan et al. 2020, table 1, without attention); the unembedding's where logits are needed. So
shares of the rate are a little too low.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open

from benchmarks.work import Ask, Row

RANK = 32
ROWS = (1, 8, 64, 256, 1024)
GPU_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a token is multiplied by: of the layers, the unembedding, their adapters."""

    layers: int
    head: int
    layers_adapter: int
    head_adapter: int

    def training_flops(self, rows: Sequence[Row]) -> float:
        """Floating-point operations of one step; a prompt that rows share is counted in each."""
        passed = sum(len(row.tokens) - 1 for row in rows)
        scored = sum(len(row.tokens) - max(1, row.num_prompt) for row in rows)
        of_layers = passed * (4 * self.layers + 6 * self.layers_adapter)
        return of_layers + scored * (4 * self.head + 6 * self.head_adapter)

    def sampling_flops(self, asks: Sequence[Ask]) -> float:
        """Floating-point operations of the completions, and of each prompt once."""
        decoded = sum(ask.num_samples * (ask.max_tokens - 1) for ask in asks)
        prefilled = sum(len(ask.prompt) for ask in asks)
        return 2 * (self.layers * (prefilled + decoded) + self.head * (len(asks) + decoded))


def count_weights(directory: Path) -> Weights:
    """The weights of a model's safetensors, and of an adapter of rank RANK on every matrix."""
    shapes: dict[str, list[int]] = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 not a dict
    embedding = shapes.pop("model.embed_tokens.weight")
    m, n = shapes.pop("lm_head.weight", embedding)
    layers = [shape for shape in shapes.values() if len(shape) == 2]
    return Weights(
        layers=sum(a * b for a, b in layers),
        head=m * n,
        layers_adapter=sum(RANK * (a + b) for a, b in layers),
        head_adapter=RANK * (m + n),
    )


def product_rates(device: str, repeats: int) -> dict[str, float]:
    """Floating-point operations a second of matrix products, by what is multiplied.

    On a CPU: rows with a packed 512 x 1536 weight, and two square matrices, in float32; on a GPU:
    two square matrices, in bfloat16.
    """
    if device != "cpu":
        name = f"{GPU_SIZE} x {GPU_SIZE} x {GPU_SIZE}"
        return {name: _square_rate(GPU_SIZE, device, torch.bfloat16, repeats)}
    rates = {f"{rows} x 512 x 1536": _packed_rate(rows, 512, 1536, repeats) for rows in ROWS}
    return rates | {"2048 x 2048 x 2048": _square_rate(2048, device, torch.float32, repeats)}


def _square_rate(size: int, device: str, dtype: torch.dtype, repeats: int) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.matmul(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return 2 * size**3 / _median_s(product, repeats)


def _packed_rate(rows: int, inputs: int, outputs: int, repeats: int) -> float:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    count = max(1, 4096 // rows)

    def products() -> None:
        for _ in range(count):
            torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    with torch.inference_mode():
        return 2 * rows * inputs * outputs * count / _median_s(products, repeats)


def _median_s(run: Callable[[], None], repeats: int) -> float:
    """Median seconds after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times[1:])
