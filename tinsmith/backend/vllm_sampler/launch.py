"""How a vLLM engine is started, and what to change when that fails."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tinsmith.backend.model.adapter import LoraSettings, linear_layers
from tinsmith.backend.model.base_model import BaseModel, choose_device, choose_dtype
from tinsmith.backend.model.capacity import footprint
from tinsmith.backend.sampling.memory import free_machine_bytes
from tinsmith.backend.sampling.replica import should_merge
from tinsmith.backend.vllm_sampler.share import Demand, choose_share, share_alone
from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[3]
# Requests that compute together; what waits beyond them stays with the server.
MAX_SEQUENCES = 256
MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
MAX_CPU_CACHE_BYTES = 4 << 30
FIRST_MAX_RANK = 32  # an adapter of a higher one makes a new engine with room for it
# Of a vocabulary whose unembedding vLLM puts an adapter on.
MAX_LORA_VOCABULARY = 258_048
# Of a GPU's memory: an engine with more, or with what is left (auto), gives it up while the trainer
# computes there.
MAX_SHARE_AWAKE = 0.5
# What vLLM prints -> what to do about it.
ADVICE = (
    (
        r"VLLM_CPU_KVCACHE_SPACE",
        "less memory is free than vLLM's cache is to take: lower the variable "
        "VLLM_CPU_KVCACHE_SPACE (GiB), or end what else runs there",
    ),
    (
        r"Free memory on device|desired (GPU|CPU) memory",
        "less memory is free than vLLM is to take: lower vllm_gpu_memory_utilization, or end what "
        "else runs there",
    ),
    (
        r"cache blocks|KV cache|max seq len",
        "the cache does not hold one sequence: lower vllm_max_model_len, or raise "
        "vllm_gpu_memory_utilization",
    ),
    (
        r"out of memory|can't allocate memory|not enough memory",
        "lower vllm_gpu_memory_utilization, vllm_max_model_len or vllm_max_loras, or set "
        "vllm_tensor_parallel_size to the number of GPUs",
    ),
    (
        r"infer device type|libcuda|[Nn]o CUDA|NVIDIA driver|CUDA driver|device-side",
        "vLLM sees no GPU that it can use: check nvidia-smi and the driver's version; on a machine "
        "without a GPU start with --device cpu",
    ),
    (
        r"No module named 'vllm'",
        "vllm_python must name a Python that has vLLM, such as `make vllm-cpu` or `make vllm-cuda` "
        "makes",
    ),
    (
        r"not supported|[Uu]nsupported|no module or parameter|unexpected keyword",
        "vLLM does not compute this model here: start with --sampler transformers",
    ),
)


@dataclass(frozen=True, slots=True)
class Launch:
    """The interpreter of vLLM's environment, its variables, and what the engine is made of."""

    python: Path
    environment: Mapping[str, str]
    engine: Mapping[str, Any]

    @property
    def merges(self) -> bool:
        """Whether adapters are merged into the engine's weights, one at a time."""
        return self.engine["merges"]

    @property
    def sleeps(self) -> bool:
        """Whether the engine gives up its memory while the trainer computes."""
        return self.engine["sleeps"]

    def with_rank(self, rank: int) -> "Launch":
        """The same with room for adapters of `rank`."""
        fitting = next(size for size in MAX_RANKS if size >= rank)
        return replace(self, engine={**self.engine, "max_lora_rank": fitting})


@dataclass(frozen=True, slots=True)
class Place:
    """The interpreter of vLLM's environment, and the GPUs, which the trainer may share."""

    python: Path
    gpus: list[int]
    is_shared: bool


def launch_of(base: BaseModel, settings: ServerSettings) -> Launch:
    """How the engine of a model is started; refused where it cannot be."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)  # the server's packages are not the engine's
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    place = place_of(base.device, settings)
    if base.device.type == "cpu":
        _limit_cpu(environment, settings)
    else:
        environment["CUDA_VISIBLE_DEVICES"] = _visible(place.gpus)
    weights = sum(parameter.nbytes for parameter in base.module.parameters())
    share = _share_at(place, settings, Demand(0, weights))
    if settings.vllm_enforce_eager:
        environment["TORCHDYNAMO_DISABLE"] = "1"
    engine = {
        "model": base.source,
        "device": base.device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
        # The last sampled token is never fed back, so it may lie one past the context.
        "max_model_len": settings.vllm_max_model_len or base.context_length + 1,
        "gpu_memory_utilization": share,
        "tensor_parallel_size": settings.vllm_tensor_parallel_size,
        "enforce_eager": settings.vllm_enforce_eager,
        "max_num_seqs": MAX_SEQUENCES,
        "sleeps": place.is_shared and _takes_most(settings),
        "merges": should_merge(base.device, base.dtype),
        "max_lora_rank": FIRST_MAX_RANK,
        "max_loras": settings.vllm_max_loras,
        "lora_layers": _adapted_layers(base),
    }
    return Launch(place.python, environment, engine)


def check_place(settings: ServerSettings) -> None:
    """Refuse, before a weight is read, settings with which no engine would start."""
    device = choose_device(settings.device)
    place = place_of(device, settings)
    if place.is_shared:
        dtype = choose_dtype(settings.dtype, device)
        sizes = [
            footprint(name, source, dtype, device.type).weights
            for name, source in settings.models.items()
        ]
        # Each of the trainer's GPUs has at least its part of the weights.
        _share_at(place, settings, Demand(sum(sizes) // settings.num_gpus, max(sizes)))


def place_of(device: torch.device, settings: ServerSettings) -> Place:
    """Where an engine runs beside a trainer on `device`; refused if there is no such place."""
    python = find_python(device.type, settings.vllm_python)
    size = settings.vllm_tensor_parallel_size
    if device.type == "cpu":
        if size != 1:
            raise TinsmithError(f"vllm_tensor_parallel_size must be 1 on a CPU, got {size}")
        return Place(python, [], is_shared=False)
    first = device.index or 0
    trainers = range(first, first + settings.num_gpus)
    return Place(python, *choose_gpus(torch.cuda.device_count(), trainers, size))


def _share_at(place: Place, settings: ServerSettings, weights: Demand) -> float:
    """Of each engine, given the weights of the trainer and of one engine."""
    given, num_engines = settings.vllm_gpu_memory_utilization, max(1, len(settings.models))
    if not place.is_shared:
        return share_alone(given, num_engines if place.gpus else 1)
    parts = weights.engine // settings.vllm_tensor_parallel_size
    demand = Demand(weights.trainer, parts, num_engines)
    return choose_share(given, [torch.cuda.mem_get_info(gpu) for gpu in place.gpus], demand)


def _takes_most(settings: ServerSettings) -> bool:
    """Whether an engine would leave the trainer too little to compute beside it."""
    given = settings.vllm_gpu_memory_utilization
    return given == "auto" or given > MAX_SHARE_AWAKE


def _adapted_layers(base: BaseModel) -> list[str] | None:
    """The kinds of layers that vLLM puts adapters on; None: all that it can."""
    if base.vocabulary_size <= MAX_LORA_VOCABULARY:
        return None
    settings = LoraSettings(rank=1, alpha=1.0, train_unembed=False)
    return sorted({name.rsplit(".", 1)[-1] for name in linear_layers(base.module, settings)})


def find_python(device_type: str, given: str | None) -> Path:
    """The interpreter of vLLM's environment: what the setting names, or what `make` made."""
    name = "vllm-cuda" if device_type == "cuda" else "vllm-cpu"
    python = ROOT / ".venvs" / name / "bin" / "python" if given is None else Path(given)
    if not python.is_file():
        raise TinsmithError(
            f"sampler vllm: there is no {python}; run `make {name}` in Tinsmith's folder, or let "
            "vllm_python name the Python of an environment with vLLM, or start with --sampler "
            "transformers"
        )
    return python


def choose_gpus(
    count: int, trainers: Sequence[int], tensor_parallel_size: int
) -> tuple[list[int], bool]:
    """GPUs for an engine: others than the trainer's if there are enough, else those too. Also
    whether they share."""
    others = [index for index in range(count) if index not in trainers]
    if len(others) >= tensor_parallel_size:
        return others[:tensor_parallel_size], False
    if count < tensor_parallel_size:
        raise TinsmithError(
            f"vllm_tensor_parallel_size must be at most the number of GPUs, {count}, got "
            f"{tensor_parallel_size}"
        )
    return sorted([*trainers, *others])[:tensor_parallel_size], True


def advice(words: str) -> str:
    """What to change, given vLLM's last words."""
    for pattern, remedy in ADVICE:
        if re.search(pattern, words):
            return remedy
    return "all that vLLM said is in the server's log; --sampler transformers does without it"


def _visible(gpus: list[int]) -> str:
    """The GPUs in the terms of a variable that may hide some already."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else None
    return ",".join(names[gpu].strip() if names else str(gpu) for gpu in gpus)


def _limit_cpu(environment: dict[str, str], settings: ServerSettings) -> None:
    if settings.threads is not None:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    cache_bytes = min(MAX_CPU_CACHE_BYTES, free_machine_bytes() // 4)
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, cache_bytes >> 30)))
