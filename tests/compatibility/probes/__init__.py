"""One function per public method, under the method's name (commands: words joined by _).

A probe calls the method by `call` and asserts what it must bring about; `x_async` is called by the
probe of `x`.
"""

from collections.abc import Callable
from typing import Any

from tests.compatibility.probes import (
    admin_client,
    command_line,
    rest_client,
    sampling_client,
    service_client,
    training_client,
)

MODULES = {
    "ServiceClient": service_client,
    "TrainingClient": training_client,
    "SamplingClient": sampling_client,
    "RestClient": rest_client,
    "AdminClient": admin_client,
    "tinker": command_line,
}


def probe_of(name: str) -> Callable[..., Any] | None:
    """The probe of a method or command, or None."""
    owner, method = name.split(" ", 1) if name.startswith("tinker ") else name.split(".")
    function = method.removesuffix("_async").replace(" ", "_").replace("-", "_")
    return getattr(MODULES[owner], function, None)
