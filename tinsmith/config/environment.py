"""What the environment says in place of keys that a config leaves out."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinsmith.config.sections import REPOSITORY, Backend
from tinsmith.errors import TinsmithError, nearest
from tinsmith.settings import from_environment, sources

PREFIX = "TINKER_DEBATE_"
BASE_MODEL, RESULTS = f"{PREFIX}BASE_MODEL", f"{PREFIX}LOG_ROOT"
VARIABLES = {"model": BASE_MODEL, "results": RESULTS}


def defaults(environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of `model`, `results` and `backend`, as a config would have them."""
    known = [BASE_MODEL, RESULTS]
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise TinsmithError(f"the environment's {name} is not a setting{nearest(name, known)}")
    values: dict[str, Any] = {"backend": from_environment(Backend, environment)}
    if model := environment.get(BASE_MODEL):
        values["model"] = _model(model)
    if folder := environment.get(RESULTS):
        values["results"] = folder.rstrip("/")
    return values


def origins(values: Mapping[str, Any], environment: Mapping[str, str], file: str) -> dict[str, str]:
    """Where model, results folder and each setting of the backend come from, by their keys."""
    found: dict[str, str] = {}
    for key, variable in VARIABLES.items():
        text = environment.get(variable)
        found[key] = (variable if text else "default") if key not in values else file
        if key in values and text:
            found[key] += f", which wins over {variable}={text}"
    given = values.get("backend") or {}
    of_backend = sources(Backend, dict.fromkeys(given, file), environment)
    return found | {f"backend.{key}": origin for key, origin in of_backend.items()}


def _model(text: str) -> dict[str, str]:
    """A directory, or a hub repository at a commit."""
    if Path(text).is_dir():
        return {"kind": "path", "path": text}
    name, at, revision = text.partition("@")
    if not at or not re.match(REPOSITORY, name) or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise TinsmithError(
            f"the environment's {BASE_MODEL} must be a model's directory, or a hub repository at a"
            f" full commit, Org/Name@<40 hex digits>, got {text!r}"
        )
    return {"kind": "hub", "name": name, "revision": revision}
