"""SIGTERM while a stage trains: a warning, at which it saves its checkpoint and ends.

SLURM sends it ahead of a time limit, when a job is preempted and when it is cancelled, and SIGKILL
some time later.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM ends nothing; the function yielded says whether it has come."""
    has_come = False

    def note(signum: int, frame: object) -> None:
        nonlocal has_come
        has_come = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: has_come
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def prompt_sigterm() -> Iterator[None]:
    """Within the block SIGTERM ends the process after all: there is nothing to save yet."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signum)
