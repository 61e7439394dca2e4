"""Sweeps: a key of the config, and the list of values that it takes in turn."""

import copy
from typing import Any

from tinsmith.config.root import Config
from tinsmith.errors import TinsmithError, nearest

_NOT_SWEPT = (
    "container",
    "stages",
    "monitors",
    "checkpoints",
    "trackers",
    "inspect",
    "resources",
    "seeds",
    "sweep",
    "results",
)


def swept_values(config: Config, key: str, values: list[Any], source: str) -> list[dict[str, Any]]:
    """The config's values for each value that `key` takes in turn."""
    if not values:
        raise TinsmithError(f"{source}: sweep.{key} must list at least one value, got []")
    return [replaced(config, {key: value}, source) for value in values]


def replaced(config: Config, changes: dict[str, Any], source: str) -> dict[str, Any]:
    """The config's values with each dotted key of `changes` set; its sweep is spent."""
    values = config.model_dump(mode="json") | {"sweep": {}}
    for key, value in changes.items():
        section, last = _place(values, key, source)
        section[last] = copy.deepcopy(value)
    return values


def _place(values: dict[str, Any], key: str, source: str) -> tuple[dict[str, Any], str]:
    """The mapping in which a key stands, and its name there: section.key, stage.key, or
    stage.arguments.key of a recipe of the cookbook, whose own keys may have dots."""
    head, _, rest = key.partition(".")
    sections = {name: values[name] for name in values if name not in _NOT_SWEPT}
    sections |= {stage["name"]: stage for stage in values["stages"]}
    _, _, argument = rest.partition(".")
    arguments = sections.get(head, {}).get("arguments")
    if isinstance(arguments, dict) and argument and rest == f"arguments.{argument}":
        return arguments, argument
    if head not in sections or not rest or "." in rest:
        hint = nearest(head, sorted(sections))
        raise TinsmithError(
            f"{source}: sweep.{key} must be a stage's name or a section, a dot and a key of it"
            f"{hint}"
        )
    if rest not in sections[head]:
        hint = nearest(rest, sorted(sections[head]))
        raise TinsmithError(f"{source}: sweep.{key} is not a key of the config{hint}")
    return sections[head], rest
