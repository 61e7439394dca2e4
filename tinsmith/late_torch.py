"""The SDK without torch, until something of the SDK needs it: two seconds a process.

`import tinker` imports torch for the conversion of tensors, of which the jobs of the pipeline make
none: theirs are numpy's.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SDK, TORCH = "tinker", "torch"


def import_torch_late() -> None:
    """Let a later `import tinker` leave torch to the first use that the SDK makes of it."""
    if SDK not in sys.modules and TORCH not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _NoTensor:
    """What nothing is an instance of: before torch is imported there are no tensors."""


class _LateTorch(ModuleType):
    """Stands for torch in the modules of the SDK."""

    def __getattr__(self, name: str) -> Any:
        if name == "Tensor" and TORCH not in sys.modules:
            return _NoTensor
        if name.startswith("__"):  # what imports ask of a module
            raise AttributeError(name)
        return getattr(importlib.import_module(TORCH), name)


class _Finder:
    """Finds the SDK once, as the finders after it do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != SDK:
            return None
        sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
        spec = importlib.util.find_spec(SDK)
        if spec is None or spec.loader is None or importlib.util.find_spec(TORCH) is None:
            return spec
        execute = spec.loader.exec_module

        def execute_without_torch(module: ModuleType) -> None:
            late = None if TORCH in sys.modules else _LateTorch(TORCH)
            if late is not None:
                sys.modules[TORCH] = late
            try:
                execute(module)
            finally:
                if sys.modules.get(TORCH) is late and late is not None:
                    del sys.modules[TORCH]

        spec.loader.exec_module = execute_without_torch  # pyright: ignore
        return spec
