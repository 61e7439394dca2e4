"""`python -m tests.compatibility.environments`: an environment for each SDK of envs/sdk.txt.

It holds the SDK and sees everything else in the environment that made it, so that it is made in
seconds and takes 3 MB.
"""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "envs" / "sdk.txt"


def other_versions() -> list[str]:
    """The SDK versions of envs/sdk.txt, in its order."""
    return re.findall(r"^tinker==(\S+)$", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)


def python_of(version: str) -> Path:
    """The interpreter that imports this version of the SDK."""
    return ROOT / ".venvs" / f"tinker-{version}" / "bin" / "python"


def make(version: str) -> None:
    """Make the environment of a version, or what is left to be done of it."""
    python = python_of(version)
    folder = python.parents[1]
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    ours = sysconfig.get_path("purelib")
    (packages / "project.pth").write_text(f"{ours}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", f"tinker=={version}"], check=True)
    # Not `pip check`: Tinsmith itself, which this environment sees, asks for another SDK.
    subprocess.run([python, "-W", "ignore", "-c", "import tinker"], check=True)


if __name__ == "__main__":
    for wanted in other_versions():
        print(f"Making {python_of(wanted).parents[1]} ...", file=sys.stderr)
        make(wanted)
