"""The weights that clients sample from."""

import os
import shutil
import time
from collections import OrderedDict
from pathlib import Path

from tinsmith.backend.model.adapter import AdapterWeights, LoraSettings
from tinsmith.backend.model.base_model import BaseModel
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory

# Weights of the latest snapshots stay in memory; older ones wait on the disk.
MAX_IN_MEMORY = 4
# Only where the disk would be left with less than this are idle snapshots dropped from it, and only
# those that nobody sampled from for so long: a client may still hold them.
MIN_FREE_BYTES = 4 << 30
IDLE_S = 3600.0


class Snapshots:
    """Adapter weights by id; None stands for the base model itself.

    The engine's thread alone calls this, but for `pin` and `dropped`.
    """

    def __init__(self, directory: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        """`directory` belongs to this server alone; what an earlier one left there is removed."""
        shutil.rmtree(directory, ignore_errors=True)
        self.directory = directory
        self._min_free_bytes = min_free_bytes
        self._bases: dict[str, BaseModel] = {}
        self._in_memory: OrderedDict[str, AdapterWeights | None] = OrderedDict()
        self._on_disk: dict[str, LoraSettings] = {}
        self._pinned: set[str] = set()
        self._last_used: dict[str, float] = {}
        self.dropped: set[str] = set()

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
        """Keep `weights`, which nothing may write to any more, in place of those there are."""
        if snapshot_id in self._bases:
            self.remove(snapshot_id)
        self._bases[snapshot_id] = base
        self._in_memory[snapshot_id] = weights
        self.touch(snapshot_id)
        try:
            self._spill()
        except OSError as error:
            self.remove(snapshot_id)
            raise TinsmithError(
                f"a snapshot of earlier weights cannot be moved to {self.directory}: "
                f"{error.strerror}; make room on the disk, or end clients that are done"
            ) from error

    def pin(self, snapshot_id: str, checkpoint: Path) -> None:
        """Hold the adapter of a checkpoint, whatever becomes of the checkpoint: by a second name of
        the same file, which takes no room, or where there are none, by a copy."""
        path = self._path(snapshot_id)
        path.mkdir(parents=True, exist_ok=True)
        source, target = (folder / "adapter_model.safetensors" for folder in (checkpoint, path))
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    def adopt(self, snapshot_id: str, base: BaseModel, settings: LoraSettings | None) -> None:
        """Know the weights that were pinned under this id, or the base model itself (None), if
        they are not known yet."""
        if snapshot_id in self._bases:
            return
        if settings is None:
            self.add(snapshot_id, base, None)
            return
        self._bases[snapshot_id] = base
        self._on_disk[snapshot_id] = settings
        self._pinned.add(snapshot_id)
        self.touch(snapshot_id)

    def get(self, snapshot_id: str) -> tuple[BaseModel, AdapterWeights | None]:
        """The base model and the weights on it."""
        base = self._bases[snapshot_id]
        if snapshot_id in self._in_memory:
            return base, self._in_memory[snapshot_id]
        return base, AdapterWeights.load(self._path(snapshot_id), self._on_disk[snapshot_id])

    def is_plain(self, snapshot_id: str) -> bool:
        """Whether a snapshot is the base model itself."""
        return self._in_memory.get(snapshot_id, snapshot_id) is None

    def base(self, snapshot_id: str) -> BaseModel:
        """The base model of a snapshot."""
        return self._bases[snapshot_id]

    def touch(self, snapshot_id: str) -> None:
        """Note that a snapshot is in use."""
        self._last_used[snapshot_id] = time.monotonic()

    def remove(self, snapshot_id: str) -> None:
        del self._bases[snapshot_id]
        del self._last_used[snapshot_id]
        self._in_memory.pop(snapshot_id, None)
        self._pinned.discard(snapshot_id)
        if self._on_disk.pop(snapshot_id, None) is not None:
            shutil.rmtree(self._path(snapshot_id))

    def remove_pinned(self, snapshot_id: str) -> None:
        """Let go of what was pinned and never used."""
        shutil.rmtree(self._path(snapshot_id), ignore_errors=True)

    def remove_all(self) -> None:
        for snapshot_id in list(self._bases):
            self.remove(snapshot_id)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spill(self) -> None:
        held = [key for key, weights in self._in_memory.items() if weights is not None]
        for snapshot_id in held[:-MAX_IN_MEMORY]:
            weights = self._in_memory[snapshot_id]
            assert weights is not None
            self._drop_idle()
            with new_directory(self._path(snapshot_id)) as folder:
                weights.save(folder, self._bases[snapshot_id].name)
            self._on_disk[snapshot_id] = weights.settings
            del self._in_memory[snapshot_id]

    def _drop_idle(self) -> None:
        """While the disk is short, drop the snapshot on it that has been idle for longest."""
        self.directory.mkdir(parents=True, exist_ok=True)
        latest = time.monotonic() - IDLE_S
        stored = self._on_disk.keys() - self._pinned  # a pinned file belongs to a checkpoint
        idle = [key for key in stored if self._last_used[key] < latest]
        for snapshot_id in sorted(idle, key=self._last_used.__getitem__):
            if shutil.disk_usage(self.directory).free >= self._min_free_bytes:
                return
            self.remove(snapshot_id)
            self.dropped.add(snapshot_id)

    def _path(self, snapshot_id: str) -> Path:
        return self.directory / snapshot_id.replace(":", "_")
