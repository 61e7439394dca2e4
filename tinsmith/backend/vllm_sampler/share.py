"""How much of a GPU's memory an engine takes that has it alone, or beside the trainer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.errors import TinsmithError

ALONE = 0.9
# Of the process of an engine, beside its share: CUDA's own, kernels, graphs.
CONTEXT_BYTES = 1 << 30
# Of what the models leave: for what the trainer keeps while an engine is awake, which are adapters,
# gradients, moments and snapshots. Its activations come and go while engines sleep.
KEPT = 0.1
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a GPU that several engines share with the trainer: bytes of the trainer's
    weights that are not there yet, bytes of each engine's weights, and the number of engines."""

    trainer: int
    engine: int
    num_engines: int = 1


def share_alone(given: float | str, num_engines: int) -> float:
    """Each engine's share of GPUs that the trainer does not use."""
    limit = _floor(1 / num_engines)
    if given == "auto":
        return _floor(ALONE / num_engines)
    if float(given) > limit:
        raise TinsmithError(
            f"vllm_gpu_memory_utilization must be at most {limit} for {num_engines} models, each "
            f"with an engine on the same GPUs, got {given}; lower it, or leave it at auto"
        )
    return float(given)


def choose_share(given: float | str, gpus: Sequence[tuple[int, int]], demand: Demand) -> float:
    """Each engine's share of the memory of GPUs with `(free, total)` bytes that the trainer uses
    too: what is given, or for auto what is left.

    vLLM starts if so much is free, with a context beside it. Refused, with what to set, where it
    would not start or could not hold its weights.
    """
    limit = min(_most(free - demand.trainer, total, demand.num_engines) for free, total in gpus)
    least = max(demand.engine / total for _, total in gpus)
    if least > limit:
        raise TinsmithError(
            f"sampler vllm: {_sizes(gpus, demand)}, and vLLM needs {demand.engine / GIB:.1f} GiB "
            "for its own copy of the weights of each model: give it a GPU that the trainer does "
            "not use, or start with --sampler transformers"
        )
    if given == "auto":
        share = _floor(min(ALONE, limit * (1 - KEPT)))
        return share if share >= least else limit
    if float(given) > limit:
        raise TinsmithError(
            f"vllm_gpu_memory_utilization must be at most {limit} where vLLM shares a GPU "
            f"with the trainer, got {given}: {_sizes(gpus, demand)}; lower it, or leave it at auto"
        )
    return float(given)


def _most(free: int, total: int, num_engines: int) -> float:
    return _floor((free / num_engines - CONTEXT_BYTES) / total)


def _floor(share: float) -> float:
    """To two digits."""
    return math.floor(100 * share) / 100


def _sizes(gpus: Sequence[tuple[int, int]], demand: Demand) -> str:
    free, total = min(gpus)
    weights = ""
    if demand.trainer:
        weights = f", of which the trainer's weights will take {demand.trainer / GIB:.1f}"
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free{weights}"
