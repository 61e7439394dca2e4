"""A program of another environment, run to its end as part of a job."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinsmith.errors import TinsmithError

GRACE_S = 10
LAST_LINES, MAX_CHARACTERS = 5, 1500


def run_child(command: Sequence[str], environment: Mapping[str, str], log: Path, what: str) -> None:
    """Run a command to its end; what it says goes to `log`.

    Its standard input is a pipe that closes when this process ends, however that is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment
        ) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code != 0:
        raise TinsmithError(f"{what} ended with exit code {code}: {_last(log)} (log: {log})")


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
