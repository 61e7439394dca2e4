"""One SDK version, tried in a process of its own."""

import json
import os
import subprocess
from pathlib import Path

from tests.compatibility.environments import ROOT
from tests.compatibility.outcome import Outcome
from tinsmith.serving import Endpoint


def try_version(
    python: Path, endpoint: Endpoint, models: Path, *options: str
) -> dict[str, Outcome]:
    """The outcome of every public method of the SDK that `python` imports.

    It runs in `models`, where a folder has the served model's name: the SDK takes a sampling
    client's tokenizer from there, as it takes one from the hub by a hub id.
    """
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.compatibility.run", *options],
        cwd=models,
        env=os.environ
        | endpoint.environment()
        | {"PYTHONPATH": str(ROOT), "TINKER_TELEMETRY": "1"},  # of which there are methods
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{python} could not be tried:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Outcome(**outcome) for name, outcome in found.items()}
