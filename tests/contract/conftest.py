"""What several of these tests ask the server by."""

import pytest
import tinker

from tinsmith.serving import Endpoint


@pytest.fixture(scope="session")
def rest(endpoint: Endpoint) -> tinker.RestClient:
    return tinker.RestClient(base_url=endpoint.base_url, api_key=endpoint.api_key)
