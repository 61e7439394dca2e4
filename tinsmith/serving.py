"""The client half's way to a service: a local backend as a child process, or the hosted one."""

import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tinker

from tinsmith.cli import KEY_VARIABLE, new_api_key
from tinsmith.config import Backend
from tinsmith.errors import TinsmithError
from tinsmith.remote import past_proxies, remote_service
from tinsmith.settings import LocalSettings, options_of, variables

READY = re.compile(r"Tinsmith serves .* at (http://\S+)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service answers, and the key it wants."""

    base_url: str
    api_key: str

    def environment(self) -> dict[str, str]:
        """Variables that point any Tinker program at this endpoint. Loopback is kept off HTTP
        proxies, behind which the SDK would wait for ever."""
        return {
            "TINKER_BASE_URL": self.base_url,
            "TINKER_API_KEY": self.api_key,
            **past_proxies(),
        }


@contextmanager
def connect(
    backend: Backend,
    model_dir: Path,
    model_name: str,
    log: Path,
    gpu_locks: Sequence[int] = (),
) -> Iterator[tinker.ServiceClient]:
    """A client of the configured service; a local one lives as long as the block.

    The local server serves `model_dir` under `model_name`, writes its log to `log`, and holds the
    locks of its GPUs (tinsmith/gpus.py).
    """
    if backend.kind == "remote":
        if backend.url is None:
            raise TinsmithError("--url must be given with backend.kind remote")
        with remote_service(backend.url.rstrip("/"), model_name) as service:
            yield service
        return
    if backend.kind == "hosted":
        if not os.environ.get("TINKER_API_KEY"):
            raise TinsmithError(
                "backend.kind is hosted, but TINKER_API_KEY is not set; export the key of the "
                "hosted service, or set backend.kind: local"
            )
        with tinker.ServiceClient() as service:
            yield service
        return
    models, options, hidden = server_arguments(backend, model_dir, model_name)
    with (
        local_server(models, options, log=log, hidden=hidden, pass_fds=gpu_locks) as endpoint,
        client_of(endpoint) as service,
    ):
        yield service


def server_arguments(
    backend: Backend, model_dir: Path, model_name: str
) -> tuple[dict[str, str], list[str], Collection[str]]:
    """The models and the options of a job's local server, and the variables that it is not to see:
    what they said is among the options."""
    options = options_of(backend, LocalSettings.model_fields)
    return {model_name: str(model_dir)}, options, variables(LocalSettings).values()


@contextmanager
def client_of(endpoint: Endpoint) -> Iterator[tinker.ServiceClient]:
    """The SDK's client, in an environment that points every other one there too."""
    os.environ.update(endpoint.environment())
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        yield service


@contextmanager
def local_server(
    models: Mapping[str, str],
    options: Sequence[str],
    *,
    api_key: str | None = None,
    log: Path | None = None,
    hidden: Collection[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[Endpoint]:
    """`tinsmith serve` as a child process, on a free port unless `options` name one.

    It stops with the block, and by itself if this process dies; until then it ignores SIGTERM,
    which SLURM sends to every process of a job while the job still wants to save. Its standard
    error goes to `log` (None: to this process's own). It does not see the environment variables
    that `hidden` names: what they said is among `options`.
    """
    key = api_key or new_api_key()
    errors = _open_log(log)
    process = subprocess.Popen(
        server_command(models, [*options, "--stop-with-stdin"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=server_environment(hidden, key),
        start_new_session=True,  # Ctrl-C is for the client; it stops the server when it is done
        pass_fds=pass_fds,
    )
    try:
        yield Endpoint(_await_ready(process, log), key)
    finally:
        _stop(process)
        if errors is not None:
            errors.close()


def server_command(models: Mapping[str, str], options: Sequence[str]) -> list[str]:
    """`tinsmith serve` on a free port, unless the options name one."""
    command = [sys.executable, "-m", "tinsmith.cli", "serve", "--port=0"]
    command += [
        f"--model={source}" if name == source else f"--model={name}={source}"
        for name, source in models.items()
    ]
    return [*command, *options]


def server_environment(hidden: Collection[str], api_key: str) -> dict[str, str]:
    """This process's environment without what is hidden, and the server's key."""
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {KEY_VARIABLE: api_key}


def _open_log(log: Path | None) -> IO[str] | None:
    if log is None:
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("w", encoding="utf-8")


def _await_ready(process: subprocess.Popen[str], log: Path | None) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if match := READY.match(line):
            return match.group(1)
    process.wait()
    raise did_not_start(process.returncode, log)


def did_not_start(code: int, log: Path | None) -> TinsmithError:
    """What to say of a server that ended before it was ready."""
    last = _last_lines(log) if log is not None else "its message stands above"
    return TinsmithError(f"the local backend did not start (exit code {code}): {last}")


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} (log: {log})"


def _stop(process: subprocess.Popen[str]) -> None:
    """Close its standard input, which it was told to stop with."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
