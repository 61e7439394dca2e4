"""A server that somebody started elsewhere, or the hosted service: found, asked for its models, or
refused."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit

import tinker

from tinsmith.errors import TinsmithError, nearest

KEY = "TINKER_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 20
HOSTED_TIMEOUT_S = 60


def rest_client() -> tinker.RestClient:
    """Of the service that the environment names. Told so, since the SDK keeps the first service of
    a process for clients that are told nothing."""
    url, key = os.environ.get("TINKER_BASE_URL"), os.environ.get(KEY)
    return tinker.RestClient(base_url=url, api_key=key)


@contextmanager
def remote_service(url: str, model_name: str) -> Iterator[tinker.ServiceClient]:
    """A client of the server at `url`, which must serve the model under that name."""
    key = check_remote(url)
    os.environ.update(past_proxies(), TINKER_BASE_URL=url)
    try:
        capabilities = rest_client().get_server_capabilities().result()
    except tinker.TinkerError as error:
        raise TinsmithError(f"the server at {url} cannot be used: {error}") from error
    served = [model.model_name for model in capabilities.supported_models]
    if model_name not in served:
        raise TinsmithError(
            f"the server at {url} must serve {model_name!r} (the config's model), but it serves"
            f" {', '.join(map(str, served))}; start it with --model {model_name}=DIRECTORY"
        )
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        yield service


def check_remote(url: str) -> str:
    """The key, once it is known that a server answers at `url` and takes it.

    The SDK would go on asking for minutes where this says at once what is wrong.
    """
    key = os.environ.get(KEY)
    if not key:
        raise TinsmithError(
            f"{KEY} must be set for backend.kind 'remote': the key that the server at {url} was"
            " started with"
        )
    for path in ("/readyz", "/metrics"):  # the second wants the key
        _get(url, path, key)
    return key


def served_dtype(url: str, model_name: str) -> str | None:
    """What the server at `url` says that it computes a model in; None if it does not say."""
    answer = json.loads(_get(url, "/api/v1/get_server_capabilities", check_remote(url)))
    models = {model["model_name"]: model for model in answer["supported_models"]}
    return models.get(model_name, {}).get("dtype")


def check_hosted(model_names: Sequence[str]) -> None:
    """Refuse to start without a key, or with a model that the hosted service does not offer."""
    key = os.environ.get(KEY)
    if not key:
        raise TinsmithError(
            f"{KEY} must be set for backend.kind 'hosted', the hosted service; set it, or"
            " choose backend.kind: local (backend.kind in the config, or TINKER_BACKEND)"
        )
    try:
        capabilities = _capabilities().result(timeout=HOSTED_TIMEOUT_S)
    except (tinker.TinkerError, TimeoutError) as error:
        raise TinsmithError(
            f"the hosted service cannot be used: {str(error) or 'it does not answer'}; check"
            f" {KEY} and the network"
        ) from error
    offered = [str(model.model_name) for model in capabilities.supported_models]
    for name in model_names:
        if name not in offered:
            raise TinsmithError(
                f"the hosted service must offer {name!r} (model.name in the config), and does not"
                f"{nearest(name, offered)}"
            )


def _capabilities() -> Future[tinker.types.GetServerCapabilitiesResponse]:
    """What the service offers, asked in a thread: where nobody answers, the SDK tries for minutes
    before it has made its client."""
    answer: Future[tinker.types.GetServerCapabilitiesResponse] = Future()

    def ask() -> None:
        try:
            answer.set_result(rest_client().get_server_capabilities().result())
        except Exception as error:  # raised where the answer is awaited
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return answer


def past_proxies() -> dict[str, str]:
    """Variables that keep this very host off HTTP proxies, and what they kept off before."""
    listed = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [host for host in listed.split(",") if host]
    no_proxy = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    return {"NO_PROXY": no_proxy, "no_proxy": no_proxy}


def sends_key_in_clear(url: str) -> bool:
    """Whether who listens on the network reads the key and everything else."""
    return urlsplit(url).scheme == "http" and not _is_loopback(url)


def _get(url: str, path: str, key: str) -> bytes:
    # A proxy of the environment is for other hosts than this one itself.
    handlers = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(f"{url}{path}", headers={"X-API-Key": key})
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise TinsmithError(_refused(url, error)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise TinsmithError(
            f"no server answers at backend.url {url}: {reason}; start it (tinsmith serve), or"
            " correct the address"
        ) from error


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def _refused(url: str, error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"the server at {url} does not take the key of {KEY}: set it to the server's own"
    said = error.read(300).decode(errors="replace").strip()
    return f"the server at {url} is not ready ({error.code}): {said or error.reason}"
