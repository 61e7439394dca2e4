"""A pydantic error, said in the user's words."""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tinsmith.config.sections import PATTERNS, USER_CLASS
from tinsmith.errors import nearest
from tinsmith.settings import LocalSettings, rule_of

_RULES = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
    "too_short": "must have at least {min_length} entries",
    "union_tag_not_found": "needs its `kind`",
}


def complain(model: type[BaseModel], error: ValidationError, source: str) -> str:
    """One paragraph: every fault as `source: path rule, got value`."""
    faults: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        path, known, place = _locate(model, fault["loc"])
        if fault["type"] == "value_error":
            key, _, said = str(fault.get("ctx", {})["error"]).partition(" ")
            path, rule = f"{path}.{key}".lstrip("."), said
        elif fault["type"] == "union_tag_invalid":
            path, rule = f"{path}.kind", _kind_rule(fault.get("ctx", {}))
        else:
            rule = _rule(dict(fault), known, place)
        faults.setdefault(path, [])
        if rule not in faults[path]:
            faults[path].append(rule)
        values[path] = _value(dict(fault))
    said = [f"{path} {_either(rules)}{values[path]}" for path, rules in faults.items()]
    return f"{source}: " + "; ".join(said)


def _either(rules: list[str]) -> str:
    return " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in rules[1:])])


def _rule(fault: dict[str, Any], known: list[str], setting: FieldInfo | None) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"is not a known key{nearest(str(fault['loc'][-1]), known)}"
    if setting is not None:
        return f"must be {rule_of(setting)}"
    if kind == "string_pattern_mismatch":
        return PATTERNS[context["pattern"]]
    return str(_RULES.get(kind) or fault["msg"]).format(**context)


def _kind_rule(context: dict[str, Any]) -> str:
    kinds = context["expected_tags"].replace("'", "")
    close = difflib.get_close_matches(str(context["tag"]), kinds.split(", "), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"must be one of {kinds}, got {context['tag']!r}{hint}"


def _value(fault: dict[str, Any]) -> str:
    if fault["type"] in ("missing", "extra_forbidden", "value_error", "union_tag_invalid"):
        return ""
    return f", got {fault['input']!r}"


def _locate(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[str, list[str], FieldInfo | None]:
    """The path as written in the file, the keys known there, and the setting of the backend that
    stands there; union tags are not in the file."""
    path, place, parts = "", cast(Any, model), list(location)
    while parts:
        part = parts.pop(0)
        if isinstance(part, int):
            path, inner = f"{path}[{part}]", next(iter(get_args(place)), None)
        else:
            path, fields = f"{path}.{part}".lstrip("."), _fields(place)
            if part not in fields:
                return path, list(fields), None
            if issubclass(place, LocalSettings):
                return path, [], fields[part]
            inner = fields[part].annotation
        place, parts = _member(inner, parts)
    return path, list(_fields(place)), None


def _member(annotation: Any, parts: list[Any]) -> tuple[Any, list[Any]]:
    """Step over the tag of a union: into the section of that kind, or out of a plain value."""
    annotation = _bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, parts
    for member in _members(annotation):
        kind = _fields(member).get("kind")
        tags = get_args(kind.annotation) or (USER_CLASS,) if kind is not None else ()
        if parts and parts[0] in tags:
            return member, parts[1:]
    return None, []


def _members(annotation: Any) -> Iterator[Any]:
    """What a union allows, unions within it among that."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _fields(place: Any) -> dict[str, FieldInfo]:
    is_model = isinstance(place, type) and issubclass(place, BaseModel)
    return place.model_fields if is_model else {}
