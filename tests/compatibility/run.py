"""`python -m tests.compatibility.run [--commands]`: call every public method of this interpreter's
SDK, and every command, on the server that TINKER_BASE_URL names; what came of each, as JSON."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.compatibility.calls import Call
from tests.compatibility.context import Context
from tests.compatibility.outcome import Outcome, outcome_of
from tests.compatibility.probes import probe_of
from tests.compatibility.surface import commands, methods

TIMEOUT_S = 120


class CommandError(Exception):
    """What a command wrote before it failed."""


def try_all(names: list[str]) -> dict[str, Outcome]:
    """The outcome of each method or command, by name."""
    context = Context()
    return {name: _try(name, context) for name in names}


def _try(name: str, context: Context) -> Outcome:
    probe = probe_of(name)
    if probe is None:
        return Outcome("no probe")
    is_command = name.startswith("tinker ")
    call = partial(run_command, name.split()[1:]) if is_command else Call(name.split(".")[1])
    try:
        with _time_limit():
            probe(context, call)
    except Exception as error:
        return outcome_of(f"{type(error).__name__}: {error}")
    return Outcome("works")


def run_command(
    words: list[str], *arguments: str, answer: str = "", format: str = "table", **environment: str
) -> str:
    """Run `tinker WORDS ARGUMENTS` with this SDK; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "tinker.cli", "--format", format, *words, *arguments],
        env=os.environ | environment,
        input=answer,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(f"{done.stdout}\n{done.stderr}")
    return done.stdout


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    wanted = methods() + (commands() if "--commands" in sys.argv else [])
    print(json.dumps({name: dataclasses.asdict(found) for name, found in try_all(wanted).items()}))
