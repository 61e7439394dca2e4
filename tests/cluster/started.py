"""Programs that submit jobs, called as a user calls them."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.pipeline.workflow import ROOT, Said, Workflow, workflow_environment

PLUGIN = ROOT / ".venvs" / "slurm"
# Of the profile, only what suits clusters that are slow to ask and stages that take hours.
ARGUMENTS = ["--profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1"]


class Started:
    """A Snakemake call under way."""

    def __init__(self, workflow: Workflow, *arguments: str) -> None:
        self.folder = workflow.folder
        self._output = (workflow.folder / "said.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *ARGUMENTS, *arguments],
            cwd=workflow.folder,
            env=with_plugin(),
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, is_so: Callable[[], object]) -> None:
        while not is_so():
            assert self._process.poll() is None, self.said().text
            time.sleep(0.1)

    def said(self) -> Said:
        code = self._process.wait()
        self._output.seek(0)
        return Said(code, self._output.read())


def with_plugin() -> dict[str, str]:
    environment = workflow_environment()
    paths = [str(PLUGIN), environment.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": ":".join(filter(None, paths))}


def call(folder: Path, program: str, *arguments: str) -> Said:
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=folder,
        env=with_plugin(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Said(done.returncode, done.stdout)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
