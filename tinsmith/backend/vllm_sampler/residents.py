"""The weights that an engine holds."""

import itertools
import shutil
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tinsmith.backend.model.adapter import AdapterWeights
from tinsmith.backend.model.base_model import BaseModel

BASE_NUMBER = 0  # of the base model, where adapters are held beside it


@dataclass(slots=True)
class Resident:
    """Weights of a snapshot in the engine: their number there, and a salt of their own for what
    is cached of prompts. `folder` holds the adapter until the engine has it."""

    number: int
    salt: str
    folder: Path | None
    is_verified: bool = False


class Residents:
    """Snapshots by id, the one used last at the end. Merged ones take each other's place."""

    def __init__(self, merges: bool, max_adapters: int, scratch: Path) -> None:
        self._merges = merges
        self._max_adapters = max_adapters
        self._scratch = scratch
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._numbers = itertools.count(BASE_NUMBER + 1)
        self._salts = itertools.count(1)

    def __contains__(self, snapshot_id: str) -> bool:
        return snapshot_id in self._residents

    @property
    def current(self) -> str | None:
        """The snapshot that is merged into the engine's weights."""
        return next(iter(self._residents), None) if self._merges else None

    def get(self, snapshot_id: str) -> Resident | None:
        if (resident := self._residents.get(snapshot_id)) is not None:
            self._residents.move_to_end(snapshot_id)
        return resident

    def owner(self, number: int) -> str | None:
        """The snapshot whose weights have a number."""
        found = (key for key, resident in self._residents.items() if resident.number == number)
        return next(found, None)

    def make_room(self, snapshot_id: str, in_use: Collection[str]) -> list[int] | None:
        """Drop what makes way for a snapshot; the numbers that the engine is to unload, or None
        if everything that it holds is in use."""
        if self._merges:
            if self.current not in (None, snapshot_id):
                self.drop(str(self.current))
            return []
        adapters = [key for key, one in self._residents.items() if one.number != BASE_NUMBER]
        surplus = max(0, len({*adapters, snapshot_id}) - self._max_adapters)
        idle = [key for key in adapters if key not in in_use and key != snapshot_id]
        if surplus > len(idle):
            return None
        dropped = [self.drop(key) for key in idle[:surplus]]
        return [resident.number for resident in dropped if resident is not None]

    def install(
        self, snapshot_id: str, base: BaseModel, weights: AdapterWeights | None
    ) -> Resident:
        """Write weights to where the engine reads them; newer ones of a snapshot keep its
        number, so that what is under way goes on with them."""
        before = self._residents.pop(snapshot_id, None)
        salt = str(next(self._salts))
        folder = None
        if weights is not None:
            folder = self._scratch / salt
            folder.mkdir(parents=True)
            weights.save(folder, base.name)
        number = BASE_NUMBER
        if before is not None:
            number = before.number
        elif weights is not None:
            number = next(self._numbers)
        resident = self._residents[snapshot_id] = Resident(number, salt, folder)
        return resident

    def verify(self, snapshot_id: str) -> None:
        """Note that the engine computes with the weights as the trainer does."""
        if (resident := self._residents.get(snapshot_id)) is not None:
            resident.is_verified = True
            _remove_folder(resident)

    def drop(self, snapshot_id: str) -> Resident | None:
        resident = self._residents.pop(snapshot_id, None)
        if resident is not None:
            _remove_folder(resident)
        return resident

    def clear(self) -> None:
        """The engine is gone, and with it what it held."""
        for snapshot_id in list(self._residents):
            self.drop(snapshot_id)


def _remove_folder(resident: Resident) -> None:
    if resident.folder is not None:
        shutil.rmtree(resident.folder, ignore_errors=True)
        resident.folder = None
