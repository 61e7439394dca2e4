"""Classes of the user's own code, which the config names as `module:Class`."""

import importlib
import inspect
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, Protocol

from tinsmith.config import UserClass
from tinsmith.errors import TinsmithError


def make_object(section: UserClass, seam: type, key: str, *arguments: Any, **offered: Any) -> Any:
    """The object that a section of the config (`key`) describes, as one of the Protocol `seam`.

    It is made with `arguments`, the section's options, and those of `offered` that its `__init__`
    names; it has all that `seam` declares.
    """
    found = load_class(section, seam, key, *arguments, **offered)
    made = found(*arguments, **section.options, **_asked_for(found, offered))
    missing = [name for name in _members(seam) if not hasattr(made, name)]
    if missing:
        raise TinsmithError(_complaint(section, key, f"must have {', '.join(missing)}", seam))
    return made


def load_class(section: UserClass, seam: type, key: str, *arguments: Any, **offered: Any) -> type:
    """The class, once it is sure to have the methods of `seam` and to accept the options.

    Modules are found in the working directory as well as where Python finds any.
    """
    module_name, _, name = section.kind.partition(":")
    module = _import(module_name, section, key)
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        defined = [n for n, v in vars(module).items() if inspect.isclass(v) and _is_of(module, v)]
        raise TinsmithError(
            f"{key}.kind must name a class, but {module.__file__} has no class"
            f" {name!r}; it has {', '.join(sorted(defined)) or 'none'}"
        )
    for method in _methods(seam):
        _check_method(section, key, seam, method, getattr(found, method.__name__, None))
    if taken := sorted(offered.keys() & section.options.keys()):
        raise TinsmithError(
            f"{key}.options must not set {taken[0]!r}, which Tinsmith gives to a class"
            " that takes it"
        )
    try:
        asked_for = _asked_for(found, offered)
        inspect.signature(found).bind(*arguments, **section.options, **asked_for)
    except TypeError as error:
        raise TinsmithError(
            f"{key}.options must be the keyword arguments of {section.kind}, got"
            f" {section.options!r}: {error}"
        ) from error
    return found


def source_files(*sections: Any) -> list[Path]:
    """The files of the user's classes among `sections`, once they were loaded."""
    modules = (
        sys.modules[section.kind.partition(":")[0]]
        for section in sections
        if isinstance(section, UserClass)
    )
    return sorted({Path(module.__file__) for module in modules if module.__file__})


def _asked_for(found: type, offered: dict[str, Any]) -> dict[str, Any]:
    """What a class names among the parameters of its `__init__`."""
    names = inspect.signature(found).parameters
    return {name: value for name, value in offered.items() if name in names}


def _import(module_name: str, section: UserClass, key: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise TinsmithError(
            f"{key}.kind {section.kind!r} must name a module that Python can import,"
            f" from {here} or an installed package, but importing {module_name} ended with"
            f" {type(error).__name__}: {error}"
        ) from error


def _check_method(
    section: UserClass, key: str, seam: type, declared: FunctionType, method: Any
) -> None:
    if not callable(method):
        raise TinsmithError(
            _complaint(section, key, f"must have the method {declared.__name__}", seam)
        )
    names = list(inspect.signature(declared).parameters)
    try:
        inspect.signature(method).bind(*names)
    except TypeError as error:
        said = f"{declared.__name__} must take ({', '.join(names)}): {error}"
        raise TinsmithError(_complaint(section, key, said, seam)) from error


def _complaint(section: UserClass, key: str, said: str, seam: type) -> str:
    return f"{key}.kind: {section.kind} {said}; see {seam.__module__}.{seam.__name__}"


def _members(seam: type) -> dict[str, Any]:
    """The properties and methods that a Protocol, or one that it extends, declares."""
    protocols = [base for base in reversed(seam.__mro__) if base not in (object, Protocol, Generic)]
    return {
        name: value
        for protocol in protocols
        for name, value in vars(protocol).items()
        if not name.startswith("_") and isinstance(value, FunctionType | property)
    }


def _methods(seam: type) -> list[FunctionType]:
    declared = _members(seam).values()
    return [value for value in declared if isinstance(value, FunctionType)]


def _is_of(module: Any, value: type) -> bool:
    return value.__module__ == module.__name__
