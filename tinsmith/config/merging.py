"""What the command line says of a config, put over what its files say."""

from collections.abc import Mapping
from typing import Any

import yaml


def merged(values: Any, changes: Any) -> Any:
    """`values` with the keys of `changes`; a section whose kind they change is replaced."""
    if not isinstance(values, Mapping) or not isinstance(changes, Mapping):
        return changes
    if "kind" in changes and changes["kind"] != values.get("kind"):
        return changes  # the keys of one kind are none of another's
    return {**values, **{key: merged(values.get(key), changes[key]) for key in changes}}


def typed(value: Any) -> Any:
    """Numbers and the like in place of their texts, as YAML reads them."""
    if isinstance(value, Mapping):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return yaml.safe_load(value) if isinstance(value, str) else value
