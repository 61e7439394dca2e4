"""Does a model fit? Asked of its configuration and the device before a weight is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tinsmith.backend.model.activations import bytes_to_leave, peak_bytes
from tinsmith.backend.model.base_model import cannot_be_loaded, decoder_layers, read_config
from tinsmith.errors import TinsmithError

GIB = 1 << 30
# What training needs at the least beside the base: an adapter of the SDK's usual rank with its
# gradient and two moments in float32, and a micro-batch of so many tokens, its layers computed
# twice, within what activations get where no setting says it.
RANK = 32
BYTES_PER_WEIGHT = 16
NUM_TOKENS = 1024
MAX_GPUS = 64


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of base models: `layers` are those of decoder layers, which can be sharded, `layer`
    the largest one, `rest` those of embeddings and norms, `work` what training adds."""

    layers: int
    layer: int
    rest: int
    work: int

    @property
    def weights(self) -> int:
        return self.layers + self.rest

    def on_each(self, num_shards: int) -> int:
        """Bytes on each of `num_shards` devices; a sharded layer is whole while it computes."""
        whole = self.layer if num_shards > 1 else 0
        return self.layers // num_shards + whole + self.rest + self.work

    def beside(self, other: "Footprint") -> "Footprint":
        """Of both models in one process, of which one works at a time."""
        return Footprint(
            self.layers + other.layers,
            max(self.layer, other.layer),
            self.rest + other.rest,
            max(self.work, other.work),
        )


def footprint(name: str, source: str, dtype: torch.dtype, device: str) -> Footprint:
    """Made of the model's modules without their weights."""
    config = read_config(name, source)
    try:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise cannot_be_loaded(name, source, error) from error
    layers = [_bytes(layer) for layer in decoder_layers(module) or []]
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    adapter = RANK * BYTES_PER_WEIGHT * sum(part.in_features + part.out_features for part in linear)
    activations = peak_bytes(
        module, NUM_TOKENS, recomputes=True, ranks=RANK * len(linear), device_type=device
    )
    work = bytes_to_leave(activations, adapter)
    return Footprint(sum(layers), max(layers, default=0), _bytes(module) - sum(layers), work)


def should_shard(
    models: Mapping[str, str],
    device: torch.device,
    dtype: torch.dtype,
    num_gpus: int,
    wish: Any,
    free_bytes: Callable[[torch.device], int],
) -> bool:
    """Whether `num_gpus` processes shard the models: if `wish` is so, or where it is auto and one
    device cannot hold them. Refused, with what would do, where they do not fit."""
    if wish is True and num_gpus == 1:
        raise TinsmithError(
            "--shard-base-model true needs GPUs to share the model out to: set --num-gpus to 2 or "
            "more, or leave --shard-base-model at auto"
        )
    parts = [footprint(name, source, dtype, device.type) for name, source in models.items()]
    size = reduce(Footprint.beside, parts)
    free = free_bytes(device)
    if device.type == "cpu":
        free //= num_gpus  # processes on a CPU have one memory between them
    is_sharded = num_gpus > 1 and (wish is True or (wish == "auto" and size.on_each(1) > free))
    if size.on_each(num_gpus if is_sharded else 1) > free:
        raise TinsmithError(_too_large(models, size, device, dtype, num_gpus, is_sharded, free))
    return is_sharded


def _too_large(
    models: Mapping[str, str],
    size: Footprint,
    device: torch.device,
    dtype: torch.dtype,
    num_gpus: int,
    is_sharded: bool,
    free: int,
) -> str:
    each = size.on_each(num_gpus if is_sharded else 1)
    place = "the CPU" if device.type == "cpu" else f"each of {num_gpus} GPUs like {device}"
    if num_gpus == 1:
        place = str(device)
    elif device.type == "cpu":
        place = f"each of {num_gpus} processes"
    return (
        f"--model {', '.join(models)}: too large: {_gib(each)} are needed on {place} to train "
        f"(weights in {str(dtype).removeprefix('torch.')}: {_gib(size.weights)} in all; an adapter "
        f"of rank {RANK} and {NUM_TOKENS} tokens: {_gib(size.work)}), and {_gib(free)} are free; "
        f"{_remedy(size, device, dtype, free)}"
    )


def _remedy(size: Footprint, device: torch.device, dtype: torch.dtype, free: int) -> str:
    smaller = "" if dtype.itemsize == 2 else ", or dtype: bfloat16"
    if device.type == "cpu":
        return f"use a machine with more memory, or end what runs beside it{smaller}"
    for num_gpus in range(2, MAX_GPUS + 1):
        if size.on_each(num_gpus) <= free:
            return (
                f"num_gpus: {num_gpus} with shard_base_model: auto would hold it, "
                f"{_gib(size.on_each(num_gpus))} on each{smaller}"
            )
    return f"no number of GPUs with so little free memory would hold it: use larger ones{smaller}"


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
