"""A folder like the hub, a server of its models, and a way to run the cookbook's recipes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cookbook.hub import make_hub
from tests.cookbook.recipes import PYTHON, Recipes
from tinsmith.serving import local_server

SERVED = ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model and data set under its hub id; recipes run in this folder."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing; make cookbook installs the tinker-cookbook")
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def environment(hub: Path) -> dict[str, str]:
    """Variables for recipes: caches of their own, and no thought of asking the hub."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | {"HF_HOME": str(hub / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def recipes(hub: Path, environment: dict[str, str]) -> Iterator[Recipes]:
    """Runs recipes against one server of both Qwen stand-ins, in float32."""
    models = {name: str(hub / name) for name in SERVED}
    options = [f"--store={hub / 'store'}", "--threads=1", "--dtype=float32"]
    with local_server(models, options, log=hub / "server.log") as endpoint:
        yield Recipes(hub, environment | endpoint.environment())
