"""Run recipes of the tinker-cookbook, unmodified, in the environment that `make cookbook` makes."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venvs" / "cookbook" / "bin" / "python"
TIMEOUT_S = 300
Metrics = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Recipes:
    """Where recipes run, and against which server."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, recipe: str, log_path: str, *options: str) -> Metrics:
        """Run `tinker_cookbook.recipes.<recipe>`; what it logged, one dict per step."""
        command = recipe_command(recipe, f"log_path={log_path}", *options)
        run_program(command, self.folder, self.environment)
        return read_metrics(self.folder / log_path)


def recipe_command(recipe: str, *options: str) -> list[str]:
    return [str(PYTHON), "-m", f"tinker_cookbook.recipes.{recipe}", *options]


def run_program(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a command to its end; if it fails, so does the test, with the last that it said."""
    ended = end_of(command, folder, environment, TIMEOUT_S)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-6000:]}"


def end_of(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """How a command ended, and all that it said; an environment of None is this process's own."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def read_metrics(log_path: Path) -> Metrics:
    lines = (log_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
