"""The snapshots that clients sample from, and the batches that run on them."""

import shutil
from collections import OrderedDict
from pathlib import Path

import psutil
import torch

from tinsmith.backend.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.base_model import BaseModel
from tinsmith.backend.sampling.batch import SamplingBatch
from tinsmith.backend.sampling.job import Job
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.files import new_directory

# Weights of the latest snapshots stay in memory; older ones wait on the disk.
MAX_IN_MEMORY = 4
# A replica holds merged weights, or a module tree on shared ones.
MAX_REPLICAS = 3


class Snapshots:
    """Immutable adapter weights by sampling session; None stands for the base model itself."""

    def __init__(self, directory: Path) -> None:
        """`directory` belongs to this server alone; what an earlier one left there is removed."""
        shutil.rmtree(directory, ignore_errors=True)
        self._directory = directory
        self._bases: dict[str, BaseModel] = {}
        self._in_memory: OrderedDict[str, AdapterWeights | None] = OrderedDict()
        self._on_disk: dict[str, LoraSettings] = {}

    @property
    def num_in_memory(self) -> int:
        return len(self._in_memory)

    @property
    def num_on_disk(self) -> int:
        return len(self._on_disk)

    def __contains__(self, snapshot_id: str) -> bool:
        return snapshot_id in self._bases

    def ids(self, prefix: str) -> list[str]:
        """The snapshots whose id starts with `prefix`."""
        return [snapshot_id for snapshot_id in self._bases if snapshot_id.startswith(prefix)]

    def add(self, snapshot_id: str, base: BaseModel, weights: AdapterWeights | None) -> None:
        """Keep `weights`, which nothing may write to any more."""
        self._bases[snapshot_id] = base
        self._in_memory[snapshot_id] = weights
        self._spill()

    def get(self, snapshot_id: str) -> tuple[BaseModel, AdapterWeights | None]:
        """The base model and the weights on it."""
        base = self._bases[snapshot_id]
        if snapshot_id in self._in_memory:
            return base, self._in_memory[snapshot_id]
        return base, AdapterWeights.load(self._path(snapshot_id), self._on_disk[snapshot_id])

    def remove(self, snapshot_id: str) -> None:
        del self._bases[snapshot_id]
        self._in_memory.pop(snapshot_id, None)
        if self._on_disk.pop(snapshot_id, None) is not None:
            shutil.rmtree(self._path(snapshot_id))

    def remove_all(self) -> None:
        for snapshot_id in list(self._bases):
            self.remove(snapshot_id)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _spill(self) -> None:
        held = [key for key, weights in self._in_memory.items() if weights is not None]
        for snapshot_id in held[:-MAX_IN_MEMORY]:
            weights = self._in_memory[snapshot_id]
            assert weights is not None
            with new_directory(self._path(snapshot_id)) as folder:
                weights.save(folder, self._bases[snapshot_id].name)
            self._on_disk[snapshot_id] = weights.settings
            del self._in_memory[snapshot_id]

    def _path(self, snapshot_id: str) -> Path:
        return self._directory / snapshot_id.replace(":", "_")


class SamplerPool:
    """Batches by snapshot; those with work take turns, a token per row each."""

    def __init__(self, snapshots: Snapshots, token_budget: int) -> None:
        self.snapshots = snapshots
        self._token_budget = token_budget
        self._batches: OrderedDict[str, SamplingBatch] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        return all(batch.is_idle for batch in self._batches.values())

    @property
    def num_waiting(self) -> int:
        """Sample requests that no step has taken up yet; may be read from any thread."""
        return sum(batch.num_waiting for batch in list(self._batches.values()))

    @property
    def num_running(self) -> int:
        """Completions that are under way; may be read from any thread."""
        return sum(batch.num_running for batch in list(self._batches.values()))

    def add(self, snapshot_id: str, job: Job) -> None:
        """Queue a request on a snapshot."""
        if snapshot_id not in self._batches:
            base, weights = self.snapshots.get(snapshot_id)
            self._batches[snapshot_id] = SamplingBatch(
                base, make_replica(base, weights), self._token_budget, _max_tokens_kept(base)
            )
        self._batches.move_to_end(snapshot_id)
        self._batches[snapshot_id].add(job)
        self._evict()

    def step(self) -> int:
        """One step of every batch that has work; an error fails that batch's requests.

        Returns how many tokens were sampled.
        """
        sampled = 0
        for batch in [batch for batch in self._batches.values() if not batch.is_idle]:
            try:
                sampled += batch.step()
            except Exception as error:  # the requests of one batch must not take the server down
                batch.fail_all(error)
        return sampled

    def forget(self, snapshot_id: str) -> None:
        """Drop a snapshot whose client is gone."""
        if batch := self._batches.pop(snapshot_id, None):
            batch.fail_all(ConnectionError("the session has ended"))
        self.snapshots.remove(snapshot_id)

    def _evict(self) -> None:
        idle = [key for key, batch in self._batches.items() if batch.is_idle]
        surplus = max(0, len(self._batches) - MAX_REPLICAS)
        for snapshot_id in idle[:surplus]:
            del self._batches[snapshot_id]


def _max_tokens_kept(base: BaseModel) -> int:
    """Cached tokens that a batch may hold: a quarter of the device's free memory."""
    config = base.module.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * base.dtype.itemsize
    return max(base.context_length, _free_bytes(base) // 4 // bytes_per_token)


def _free_bytes(base: BaseModel) -> int:
    if base.device.type == "cuda":
        return torch.cuda.mem_get_info(base.device)[0]
    return psutil.virtual_memory().available
