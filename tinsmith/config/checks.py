"""Check a config and say what is wrong in one paragraph: the key's path, the rule and the value."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from tinsmith.config.complaints import complain
from tinsmith.config.environment import defaults
from tinsmith.config.root import Config
from tinsmith.config.sweeping import swept_values
from tinsmith.errors import TinsmithError

_SECRET_KEY = re.compile(
    r"(api|access|private|secret)[_-]?key$|secret$|passw(or)?d$|passphrase$|credentials?$"
    r"|(^|access|auth|bearer|hf|hub|wandb|tinker)[_-]?token$|^authorization$",
    re.IGNORECASE,
)
# Keys of Tinker, OpenAI, the hub, W&B, GitHub and AWS, also within a text; a header; an address
# with a password in it.
_SECRET_VALUE = re.compile(
    r"(?<![\w-])(hf_|tml-|sk-|wandb_v1_|gh[opsu]_|github_pat_)[\w-]{12,}|(?<!\w)AKIA[A-Z0-9]{16}"
    r"|\bBearer (?=[\w.-]*\d)[\w.-]{16,}|://[^/\s:@]+:[^/\s@]+@"
)
_EXPONENT = re.compile(r"^[+-]?\d+(\.\d+)?[eE][+-]?\d+$")
_Checked = TypeVar("_Checked", bound=BaseModel)


def load(path: Path) -> Config:
    """The checked config of a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TinsmithError(f"{path}: the config cannot be read: {error.strerror}") from error
    try:
        return check(yaml.safe_load(text), str(path))
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise TinsmithError(f"{path}: the config is not valid YAML: {said}") from error


def check(values: Any, source: str = "config.yaml") -> Config:
    """The checked config. The environment stands in for keys that are left out; a key that is
    there wins, so that a file says what it runs wherever it is run."""
    plain = _plain(values, source)
    _refuse_secrets(plain, source, "")
    outside = defaults(os.environ)
    if isinstance(given := plain.get("backend") or {}, dict):
        plain = {**outside, **plain, "backend": {**outside["backend"], **given}}
    config = check_section(Config, plain, source)
    for key, values in config.sweep.items():
        for value in swept_values(config, key, values, source):
            check_section(Config, value, f"{source}: sweep.{key}")
    return config


def check_section(section: type[_Checked], values: Any, source: str) -> _Checked:
    """`values` as a `section`, or one TinsmithError that names every fault."""
    try:
        return section.model_validate_json(to_json(values))
    except ValidationError as error:
        raise TinsmithError(complain(section, error, source)) from None


def _plain(values: Any, source: str) -> dict[str, Any]:
    """`values` as JSON knows them; 1e-4, which is text to YAML 1.1, is the number it looks like."""
    if not isinstance(values, Mapping):
        raise TinsmithError(f"{source}: the config must be a mapping of sections, got {values!r}")
    try:
        plain = from_json(to_json(values, inf_nan_mode="strings"))
        return cast("dict[str, Any]", _with_numbers(plain))
    except ValueError as error:
        raise TinsmithError(f"{source}: the config holds what JSON cannot: {error}") from error


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and _EXPONENT.match(value):
        return float(value)
    return value


def _refuse_secrets(value: Any, source: str, path: str) -> None:
    """Configs are recorded, printed and shared; secrets belong in the environment."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}".lstrip(".")
            if _SECRET_KEY.search(key):
                raise TinsmithError(_secret_message(source, here))
            _refuse_secrets(item, source, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_secrets(item, source, f"{path}[{index}]")
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        raise TinsmithError(_secret_message(source, path))


def _secret_message(source: str, path: str) -> str:
    return (
        f"{source}: {path} looks like a secret, and secrets do not belong in the config, which is"
        " recorded with every result; set it in the environment instead (TINKER_API_KEY, HF_TOKEN,"
        " WANDB_API_KEY) and remove the key"
    )
