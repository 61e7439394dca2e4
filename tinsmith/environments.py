"""Environments of their own, .venvs/NAME, whose packages Tinsmith's own cannot hold."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from tinsmith.errors import TinsmithError


@dataclass(frozen=True, slots=True)
class Environment:
    """What `make NAME` makes from envs/NAME.txt, in `root`, Tinsmith's folder."""

    name: str
    root: Path = Path()

    @property
    def folder(self) -> Path:
        return self.root / ".venvs" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Written when everything is installed."""
        return self.folder / "stamp"

    def find_packages(self) -> Path:
        """Its site-packages, which must hold every package in the version that is pinned."""
        found = sorted(self.folder.glob("lib/python3*/site-packages"))
        if not found or not self.python.is_file():
            raise TinsmithError(
                f"there is no {self.python}; in Tinsmith's folder remove {self.folder}, if it is"
                f" there, and run `make {self.name}`, which makes that environment"
            )
        pins = self.root / "envs" / f"{self.name}.txt"
        installed = _installed(found[0])
        for name, pinned in read_pins(pins.read_text(encoding="utf-8")).items():
            version = installed.get(canonicalize_name(name))
            if version is None or not is_pinned(version, pinned):
                raise TinsmithError(
                    f"{self.folder} must hold {name} {pinned}, which {pins} pins, but has"
                    f" {version or 'none'}; remove {self.folder} and run `make {self.name}`, which"
                    " makes it anew"
                )
        return found[0]


def read_pins(text: str) -> dict[str, str]:
    """The pinned version of every package of a requirements file."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;#]+)\s*$", text, re.MULTILINE))


def is_pinned(installed: str, pinned: str) -> bool:
    """Whether a version is the pinned one, of whichever platform: 2.13.0+cpu is 2.13.0."""
    return Version(installed).public == Version(pinned).public


def _installed(packages: Path) -> dict[str, str]:
    """Versions by the package's canonical name, from the names of the folders that say so."""
    parts = (path.stem.rpartition("-") for path in packages.glob("*.dist-info"))
    return {canonicalize_name(name): version for name, _, version in parts}
