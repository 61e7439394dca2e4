"""Sweeps: a key of the config, and the list of values that it takes in turn."""

import copy
from typing import Any

from tinsmith.config.root import Config
from tinsmith.errors import TinsmithError, nearest

_NOT_SWEPT = ("container", "stages", "monitors", "resources", "seeds", "sweep", "results")


def swept_values(config: Config, key: str, values: list[Any], source: str) -> list[dict[str, Any]]:
    """The config's values for each value that `key` takes in turn."""
    if not values:
        raise TinsmithError(f"{source}: sweep.{key} must list at least one value, got []")
    return [replaced(config, {key: value}, source) for value in values]


def replaced(config: Config, changes: dict[str, Any], source: str) -> dict[str, Any]:
    """The config's values with each dotted key of `changes` set; its sweep is spent."""
    values = config.model_dump(mode="json") | {"sweep": {}}
    for key, value in changes.items():
        _section(values, key, source)[key.rpartition(".")[2]] = copy.deepcopy(value)
    return values


def _section(values: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    """The mapping in which the last part of a dotted key stands."""
    head, *rest = key.split(".")
    sections = {name: values[name] for name in values if name not in _NOT_SWEPT}
    sections |= {stage["name"]: stage for stage in values["stages"]}
    if head not in sections or len(rest) != 1:
        hint = nearest(head, sorted(sections))
        raise TinsmithError(
            f"{source}: sweep.{key} must be a stage's name or a section, a dot and a key of it"
            f"{hint}"
        )
    if rest[0] not in sections[head]:
        hint = nearest(rest[0], sorted(sections[head]))
        raise TinsmithError(f"{source}: sweep.{key} is not a key of the config{hint}")
    return sections[head]
