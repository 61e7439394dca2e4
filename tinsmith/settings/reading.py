"""Reading settings from text: command-line options and environment variables."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tinsmith.errors import TinsmithError, nearest
from tinsmith.settings.definition import PREFIX, ServerSettings, rule_of


def variables(model: type[BaseModel]) -> dict[str, str]:
    """The environment variable of each field that has one."""
    named = {name: _extra(field)["variable"] for name, field in model.model_fields.items()}
    return {
        name: variable or PREFIX + name.upper()
        for name, variable in named.items()
        if variable is not None
    }


def parse(field: FieldInfo, text: str) -> Any:
    """`text` as a value of the field; ValueError, which says the rule, if it is none."""
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[(kind, *field.metadata)]
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        raise ValueError(f"must be {rule_of(field)}, got {text!r}") from None


def from_environment(model: type[BaseModel], environment: Mapping[str, str]) -> dict[str, Any]:
    """The values that the environment gives to fields of `model`; an empty variable is unset.

    A wrong value is refused, and so is a TINKER_LOCAL_ variable that no setting has.
    """
    ours = variables(model)
    known = {*ours.values(), *variables(ServerSettings).values()}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise TinsmithError(f"the environment's {name} is not a setting{nearest(name, known)}")
    values: dict[str, Any] = {}
    for name, variable in ours.items():
        if text := environment.get(variable):
            try:
                values[name] = parse(model.model_fields[name], text)
            except ValueError as error:
                raise TinsmithError(f"the environment's {variable} {error}") from None
    return values


def sources(
    model: type[BaseModel],
    given: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Where each setting's value comes from: what `given` calls it, its variable, or default."""
    found: dict[str, str] = {}
    ours = variables(model)
    for name, field in model.model_fields.items():
        if field.json_schema_extra is None:
            continue
        variable = ours.get(name, "")
        text = environment.get(variable)
        if name in given:
            found[name] = given[name] + (f", which wins over {variable}={text}" if text else "")
        else:
            found[name] = variable if text else "default"
    return found


def add_options(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """An option for each setting; one that is not given leaves no trace among the arguments."""
    ours = variables(model)
    for name, field in model.model_fields.items():
        if not _extra(field)["is_option"]:
            continue
        default = text_of(field.default)
        known = f"{ours[name]}, else {default}" if name in ours else default
        parser.add_argument(
            option(name),
            dest=name,
            type=_option_type(field),
            default=argparse.SUPPRESS,
            metavar=name.upper(),
            help=f"{field.description}; {rule_of(field)} (default: {known})".replace("%", "%%"),
        )


def given_options(arguments: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The settings that the command line gives."""
    names = [name for name, field in model.model_fields.items() if _extra(field)["is_option"]]
    return {name: value for name, value in vars(arguments).items() if name in names}


def options_of(settings: BaseModel, names: Iterable[str]) -> list[str]:
    """The words of a command line that give these settings again; None has no word."""
    values = {name: getattr(settings, name) for name in names}
    return [f"{option(n)}={text_of(value)}" for n, value in values.items() if value is not None]


def option(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def _option_type(field: FieldInfo) -> Callable[[str], Any]:
    def typed(text: str) -> Any:
        try:
            return parse(field, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def text_of(value: Any) -> str:
    """A value as options and variables have it."""
    if value is None:
        return "none"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {"variable": None, "is_option": False}
