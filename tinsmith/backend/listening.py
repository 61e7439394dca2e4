"""A server's ears: its socket, its signals, and the word that it is ready."""

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from tinsmith.errors import TinsmithError
from tinsmith.settings import ServerSettings

# What a client gets to fetch its last answers.
SHUTDOWN_S = 3
BACKLOG = 2048


def stop_when_told() -> None:
    """End cleanly on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # uvicorn raises the signal again when it has shut down


def _exit(number: int, _: object) -> NoReturn:
    """Being told to stop is a clean end; Ctrl-C keeps the exit code that shells know."""
    raise SystemExit(0 if number == signal.SIGTERM else 128 + number)


@contextmanager
def listening_socket(settings: ServerSettings) -> Iterator[socket.socket]:
    """A socket on the address of the settings, or an error that says why there is none."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            # Another server that starts at the same time could still bind the port until then.
            listener.listen(BACKLOG)
        except OSError as error:
            raise TinsmithError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
                "choose another --port (0 takes a free one) or stop what uses it"
            ) from error
        yield listener


def listen(
    app: ASGIApp,
    listener: socket.socket,
    what: str,
    on_shutdown: Callable[[], None],
    *,
    ignores_sigterm: bool = False,
) -> None:
    """Answer on a socket until told to stop, and say on standard output what is served."""
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    announcement = f"Tinsmith serves {what} at http://{address}"
    _Server(config, announcement, on_shutdown, ignores_sigterm).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says on standard output when it accepts requests; lets nobody wait when it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        announcement: str,
        on_shutdown: Callable[[], None],
        ignores_sigterm: bool,
    ) -> None:
        super().__init__(config)
        self._announcement = announcement
        self._on_shutdown = on_shutdown
        self._ignores_sigterm = ignores_sigterm

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not (self._ignores_sigterm and sig == signal.SIGTERM):
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._announcement, file=sys.stdout, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)
