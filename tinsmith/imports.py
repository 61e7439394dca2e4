"""Imports that cost less: of a package that may not be used, and of many modules at once."""

import gc
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage, and never look for it in what there is then.

    Modules stay, so that going through them again and again finds nothing; for those of PyTorch,
    transformers and PEFT together it takes a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def defer_import(package: str) -> None:
    """Let `import package` give a stand-in, until an attribute or a module of it is asked for.

    What imports the package in case it is given something of it, as the SDK does with PyTorch, then
    costs nothing. Nothing is done where the package is imported already, or is not installed.
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is None:
        return
    stand_in = _StandIn(package)
    stand_in.__spec__, stand_in.__path__ = spec, list(spec.submodule_search_locations or [])
    sys.modules[package] = stand_in
    sys.meta_path.insert(0, _ModulesOf(stand_in))


class _StandIn(ModuleType):
    """Has what a package has, and imports it for the first of that. Whoever imported this one keeps
    it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_imported(self), name)


class _ModulesOf(MetaPathFinder):
    """Imports the package before a module of it."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = self._stand_in.__name__
        is_ours = fullname.startswith(f"{package}.") and sys.modules.get(package) is self._stand_in
        if not is_ours:
            return None
        _imported(self._stand_in)
        existing = sys.modules.get(fullname)
        return _spec_of(existing) if existing and existing.__spec__ else None


def _spec_of(module: ModuleType) -> ModuleSpec:
    """One by which a module that came with its package is not run again. It has to be the module's
    own for a moment: of two, importlib takes that."""
    own = module.__spec__
    assert own is not None
    spec = ModuleSpec(own.name, _Existing(module), origin=own.origin)
    spec.submodule_search_locations = own.submodule_search_locations
    module.__spec__ = spec
    return spec


class _Existing(Loader):
    """Gives a module as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _imported(stand_in: _StandIn) -> ModuleType:
    """The package itself, in the place of its stand-in."""
    name = stand_in.__name__
    with _LOCK:
        is_first = sys.modules.get(name) is stand_in
        if is_first:
            del sys.modules[name]
    with uncollected() if is_first else nullcontext():
        return importlib.import_module(name)
