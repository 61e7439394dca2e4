"""A machine as scripts/gh200_setup_local_tinker.sh finds it, with parts that are not there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.pipeline.workflow import ROOT

DRIVER = """#!/bin/sh
cat <<EOF
==============NVSMI LOG==============
Driver Version                            : 570.86.15
CUDA Version                              : 12.8
Attached GPUs                             : 1
GPU 00000009:01:00.0
    Product Name                          : NVIDIA GH200 480GB
    Addressing Mode                       : ATS
    FB Memory Usage
        Total                             : 97871 MiB
EOF
"""


def lay_out(folder: Path) -> Path:
    """The project as the script sees it, with one small package to install."""
    project = folder / "project"
    for name in ("scripts/gh200_setup_local_tinker.sh", "scripts/torch_report.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "envs").mkdir()
    (project / "envs/engine.txt").write_text("# The pins.\nidna==3.20\ntorch==2.13.0\n")
    driver = folder / "driver/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text(DRIVER)
    driver.chmod(0o755)
    return project


def make_python(prefix: Path) -> Path:
    """A Python of its own, sharing this one's standard library: a system's, to put packages in."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = prefix / "lib" / version
    library.mkdir(parents=True)
    for part in Path(os.__file__).parent.iterdir():
        if part.name not in ("site-packages", "dist-packages", "__pycache__"):
            (library / part.name).symlink_to(part)
    (library / "site-packages").mkdir()
    (prefix / "bin").mkdir()
    # A venv's program begins elsewhere: the real one, beside which its libraries are found.
    program = Path(sys.base_prefix) / "bin" / version
    copy = prefix / "bin" / version
    shutil.copy(program.resolve(), copy)
    for shared in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        (prefix / "lib" / shared.name).symlink_to(shared)
    return copy


def packages_of(python: Path) -> Path:
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    said = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout
    return Path(said.strip())


def write_torch(packages: Path, version: str, cuda: str | None, fault: str = "") -> None:
    """A torch that says what it was built for, and whose CUDA starts or ends with `fault`."""
    for name, text in _torch_files(version, cuda, fault).items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)


def make_index(folder: Path, version: str, cuda: str | None) -> str:
    """The address of a package index that has this torch and nothing else."""
    listing = folder / "simple/torch"
    listing.mkdir(parents=True)
    file = f"torch-{version}-py3-none-any.whl"
    (listing / "index.html").write_text(f"<!DOCTYPE html><a href='{file}'>{file}</a>")
    with zipfile.ZipFile(listing / file, "w") as wheel:
        for name, text in _torch_files(version, cuda, "").items():
            wheel.writestr(name, text)
    return (folder / "simple").as_uri()


def _torch_files(version: str, cuda: str | None, fault: str) -> dict[str, str]:
    record = f"torch-{version}.dist-info"
    start = f"def zeros(size, device):\n    if {fault!r}:\n        raise RuntimeError({fault!r})\n"
    return {
        "torch/version.py": f"cuda = {cuda!r}\n",
        "torch/__init__.py": f"from torch import version\n__version__ = {version!r}\n{start}",
        f"{record}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{record}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{record}/RECORD": "torch/version.py,,\ntorch/__init__.py,,\n",
    }


def make_older(python: Path) -> None:
    """Let this Python take itself for a 3.10."""
    said = "import sys\nsys.version_info = (3, 10, 12, 'final', 0)\n"
    (packages_of(python) / "sitecustomize.py").write_text(said)
