"""A folder in which the real Snakefile runs, and what a Snakemake call there said."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
# The files that each program writes, by the flags that name them.
WRITES = {
    "check_setup": ("setup",),
    "prepare_model": ("model",),
    "prepare_data": ("train", "heldout", "stats"),
    "train": ("checkpoint", "info", "saved", "metrics", "steps", "transcript", "weights"),
    "train_cookbook": ("checkpoint", "info", "saved", "metrics", "weights", "recipe"),
    "evaluate": ("evaluation", "samples"),
    "inspect_stage": ("result", "samples"),
    "export": ("adapter", "merged", "check"),
    "report": ("page",),
}
FOLDERS = ("model", "steps", "weights", "recipe", "adapter", "merged")
STAND_IN = '''"""Stands in for the real program: writes its outputs, and does no work."""
import pathlib, sys

words = sys.argv[1:]
for place, word in enumerate(words):
    name = word.removeprefix("--")
    if word.startswith("--") and name in (*WRITES, "metadata", "log"):
        path = pathlib.Path(words[place + 1])
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in FOLDERS:
            path.mkdir(exist_ok=True)
            path = path / "file"
        path.write_text("made")
'''


@dataclass(frozen=True, slots=True)
class Said:
    """How a call ended and all that it printed."""

    code: int
    text: str

    @property
    def jobs(self) -> set[str]:
        """The planned jobs, as "rule" or "rule stage" or "rule run stage" where runs differ."""
        found = set()
        blocks = re.split(r"\n(?=(?:local)?rule )", self.text)
        for block in blocks[1:]:
            rule = re.match(r"(?:local)?rule (\w+):", block)
            stage = re.search(r"^ +wildcards:.*\bstage=([\w-]+)", block, re.MULTILINE)
            seed = re.search(r"^ +wildcards:.*\bseed=(\d+)", block, re.MULTILINE)
            assert rule is not None
            words = [rule[1], *([stage[1]] if stage else [])]
            if seed and seed[1] != "0":
                words.append(f"seed={seed[1]}")
            found.add(" ".join(words))
        return found - {"all"}


class Workflow:
    """The repository's workflow in `folder`, with a config of its own."""

    def __init__(self, folder: Path, config: dict[str, Any], *, stand_ins: bool) -> None:
        self.folder = folder
        for name in ("tinsmith", "configs"):
            (folder / name).symlink_to(ROOT / name)
        for name in ("rules", "profiles", "envs", "containers"):
            unbuilt = shutil.ignore_patterns("*.sif")
            shutil.copytree(ROOT / name, folder / name, ignore=unbuilt)
        shutil.copy(ROOT / "Snakefile", folder)
        if stand_ins:
            (folder / "scripts").mkdir()
            for name, writes in WRITES.items():
                program = STAND_IN.replace("WRITES", repr(writes)).replace("FOLDERS", repr(FOLDERS))
                (folder / "scripts" / f"{name}.py").write_text(program)
            # What the shipped configs read.
            for name in ("summary", "constrained", "definition", "conversations", "distilled"):
                (folder / f"{name}.jsonl").touch()
        else:
            (folder / "scripts").symlink_to(ROOT / "scripts")
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def snakemake(self, *arguments: str, **environment: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=workflow_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout)

    def plan(self, *arguments: str, **environment: str) -> Said:
        return self.snakemake("--dry-run", *arguments, **environment)


def workflow_environment() -> dict[str, str]:
    """This environment, with this Python's programs first."""
    programs = str(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    return kept | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def wait_for(is_so: Callable[[], object], log: Path, timeout_s: float = 240) -> None:
    """Until something is so; if that takes too long, the test fails with what a log says."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def processes_in(folder: Path) -> list[str]:
    """The command lines of what still runs in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
