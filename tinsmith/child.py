"""A program of another environment, run to its end as part of a job."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tinsmith.errors import TinsmithError

GRACE_S = 10
LAST_LINES, MAX_CHARACTERS = 5, 1500
TIED = Path(__file__).with_name("tied.py")


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    what: str,
    answer: str = "",
) -> None:
    """Run a command to its end, which is this process's own at the latest, however that ends.

    What it says goes to `log`; where it asks, it reads `answer`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tied = [sys.executable, "-I", "-S", str(TIED), str(os.getpid()), *command]
    with (
        log.open("w", encoding="utf-8") as said,
        _holding(answer) as answers,
        subprocess.Popen(tied, stdin=answers, stdout=said, stderr=said, env=environment) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code != 0:
        raise TinsmithError(f"{what} ended with exit code {code}: {_last(log)} (log: {log})")


@contextmanager
def _holding(text: str) -> Iterator[IO[bytes]]:
    """A file to read the text from, and then its end."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _last(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()[-MAX_CHARACTERS:]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:]) or "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
