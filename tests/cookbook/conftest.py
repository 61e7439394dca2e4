"""A folder like the hub, a server of its models, and a way to run the cookbook's recipes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.cookbook.hub import LLAMA_MODEL, make_hub
from tests.cookbook.recipes import PYTHON, Recipes
from tinsmith.serving import Endpoint, local_server

SERVED = ("Qwen/Qwen3-8B", LLAMA_MODEL)


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
def endpoint(hub: Path) -> Iterator[Endpoint]:
    """One server of two stand-ins, in float32."""
    models = {name: str(hub / name) for name in SERVED}
    options = [f"--store={hub / 'store'}", "--threads=1", "--dtype=float32"]
    with local_server(models, options, log=hub / "server.log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def service(endpoint: Endpoint) -> Iterator[tinker.ServiceClient]:
    """The SDK's own client of that server."""
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        yield service


@pytest.fixture(scope="session")
def recipes(hub: Path, environment: dict[str, str], endpoint: Endpoint) -> Recipes:
    """Runs recipes against that server."""
    return Recipes(hub, environment | endpoint.environment())
