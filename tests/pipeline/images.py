"""A real Apptainer, and a base image from which the project's own definitions build fast."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.pipeline.workflow import ROOT

HOME = ROOT / ".venvs" / "apptainer"
# Installed by the definition and not before it, so that its own pip has something to do.
LEFT_OUT = ("idna", "pyyaml", "tinker", "snakemake")
FAST_TO_WRITE = "-comp zstd -Xcompression-level 1"


def missing() -> str | None:
    """What this machine lacks, for a test to skip with."""
    if (HOME / "stamp").exists():
        return None
    return "needs Apptainer and a base image: envs/install_apptainer.sh, as root on Debian"


def path_with_apptainer() -> str:
    return f"{HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"


def apptainer(*arguments: str) -> str:
    return subprocess.run(
        ["apptainer", *arguments],
        env=os.environ | {"PATH": path_with_apptainer()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def copy_of_the_base(folder: Path) -> tuple[Path, list[str]]:
    """A base whose pip finds packages where this machine's does, and the options to build with."""
    base = folder / "base"
    shutil.copytree(HOME / "base", base, symlinks=True, copy_function=_link)
    settings = _pip_settings()
    bundle = settings.pop("cert", None)
    if bundle:
        settings["cert"] = "/etc/ssl/certs/ca-certificates.crt"
        target = base / settings["cert"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle, target)
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (base / "etc/pip.conf").write_text("\n".join(["[global]", *lines]) + "\n")

    binds = []
    for word in " ".join(settings.values()).split():
        place = Path(word)
        if word.startswith("file://"):  # an index; its files often lie beside it
            place = Path(word.removeprefix("file://")).parent
        if place.is_dir():
            binds += ["--bind", str(place)]
            (base / str(place).lstrip("/")).mkdir(parents=True, exist_ok=True)
    return base, [*binds, "--mksquashfs-args", FAST_TO_WRITE]


def lay_in_pinned_packages(base: Path) -> None:
    """This environment's packages where the image's will be, so that pip need not unpack 2 GB.

    Only where both Pythons are of one version; pip still checks every one against its pin.
    """
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (base / "usr/bin" / here).exists():
        return
    target = base / "opt/tinsmith/venv/lib" / here / "site-packages"
    pins = (ROOT / "envs/engine.txt").read_text()
    for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE):
        if name.lower() in LEFT_OUT:
            continue
        for file in importlib.metadata.files(name) or []:
            if file.parts[0] != "..":  # programs in bin/ name this environment's Python
                copy = target / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(str(file.locate()), str(copy))


def _pip_settings() -> dict[str, str]:
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^[:\w]+\.([\w.-]+?)='(.*)'$", said, re.MULTILINE)
    used = ("cert", "find-links", "index-url", "extra-index-url", "trusted-host", "proxy")
    return {name.lstrip("."): value for name, value in found if name.lstrip(".") in used}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
