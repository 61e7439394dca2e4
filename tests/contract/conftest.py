"""What several of these tests ask the server by."""

from collections.abc import Iterator

import pytest
import tinker

from tests.in_process import KEY
from tinsmith.serving import Endpoint


@pytest.fixture(scope="session")
def rest(endpoint: Endpoint) -> tinker.RestClient:
    return tinker.RestClient(base_url=endpoint.base_url, api_key=endpoint.api_key)


@pytest.fixture(scope="session", params=["transformers", "vllm"])
def each_endpoint(request: pytest.FixtureRequest) -> Endpoint:
    """The server of each sampler in turn; both serve a model called qwen3."""
    if request.param == "vllm":
        return Endpoint(request.getfixturevalue("vllm_served").base_url, KEY)
    return request.getfixturevalue("endpoint")


@pytest.fixture(scope="session")
def each_service(each_endpoint: Endpoint) -> Iterator[tinker.ServiceClient]:
    """The SDK's own client of that server."""
    key = each_endpoint.api_key
    with tinker.ServiceClient(base_url=each_endpoint.base_url, api_key=key) as service:
        yield service
