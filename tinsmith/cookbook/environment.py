"""The environment that recipes run in, .venvs/cookbook, which is not this program's own."""

import re
from importlib.metadata import distributions
from pathlib import Path

from tinsmith.errors import TinsmithError

FOLDER = Path(".venvs/cookbook")
PYTHON = FOLDER / "bin" / "python"
LAUNCHER = Path(__file__).with_name("launcher.py")


def find_packages(pins: Path) -> Path:
    """Its site-packages, where the cookbook and the SDK must be the ones that `pins` names."""
    found = sorted(FOLDER.glob("lib/python3*/site-packages"))
    if not found or not PYTHON.exists():
        raise TinsmithError(f"{FOLDER} must hold the tinker-cookbook; `make cookbook` makes it")
    installed = {_plain(d.metadata["Name"]): d.version for d in distributions(path=[str(found[0])])}
    text = pins.read_text(encoding="utf-8")
    for name in ("tinker", "tinker_cookbook"):
        (pinned,) = re.findall(rf"^{name}==(\S+)", text, re.MULTILINE)
        if installed.get(_plain(name)) != pinned:
            raise TinsmithError(
                f"{FOLDER} must hold {name} {pinned}, which {pins} pins, but has"
                f" {installed.get(_plain(name), 'none')}; `make cookbook` brings it up to date"
            )
    return found[0]


def _plain(name: str) -> str:
    """A distribution's name as all its spellings have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()
