"""Sweeps: a key of the config, and the list of values that it takes in turn."""

import copy
from collections.abc import Callable
from typing import Any

from tinsmith.config.complaints import nearest
from tinsmith.config.root import Config
from tinsmith.errors import TinsmithError

_NOT_SWEPT = ("stages", "seeds", "sweep")


def check_sweep(config: Config, check_values: Callable[[dict[str, Any], str], object]) -> None:
    """Every swept key must exist, and each of its values must be one that the key can take."""
    for key, values in config.sweep.items():
        if not values:
            raise TinsmithError(f"sweep.{key} must list at least one value, got []")
        for value in values:
            check_values(replaced(config, {key: value}), key)


def replaced(config: Config, changes: dict[str, Any]) -> dict[str, Any]:
    """The config's values with each dotted key of `changes` set; its sweep is spent."""
    values = config.model_dump(mode="json") | {"sweep": {}}
    for key, value in changes.items():
        _set(config, values, key, copy.deepcopy(value))
    return values


def _set(config: Config, values: dict[str, Any], key: str, value: Any) -> None:
    head, *rest = key.split(".")
    sections = {name: values[name] for name in values if name not in _NOT_SWEPT}
    sections |= {stage["name"]: stage for stage in values["stages"]}
    if head not in sections or not rest:
        hint = nearest(head, sorted(sections))
        raise TinsmithError(
            f"sweep.{key} must be a stage's name or a section, a dot and a key of it{hint}"
        )
    place = sections[head]
    for part in rest[:-1]:
        place = place.get(part)
    if not isinstance(place, dict) or rest[-1] not in place:
        hint = nearest(rest[-1], sorted(sections[head]))
        raise TinsmithError(f"sweep.{key} is not a key of the config{hint}")
    place[rest[-1]] = value
