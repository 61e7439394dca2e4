"""Equality of expressions, by the library math-verify, in a process that can be stopped.

Deciding whether two expressions are equal can take for ever or all memory (9^9^9^9), and what asks
is written by a model. The library's own time limit is a signal, which works in the main thread only
and does not interrupt arithmetic on huge integers; ending a process always works.
"""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass

MAX_CHARACTERS = 4000
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two expressions are equal, and whether the written one is an expression at all."""

    is_equal: bool
    is_parsed: bool


class MathVerifier:
    """A child process that compares expressions; started when first needed, again when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def compare(self, expected: str, written: str, timeout_s: float) -> Verdict:
        """Compare the expressions in two texts; what takes longer than `timeout_s` is not equal."""
        question = json.dumps([expected, written[-MAX_CHARACTERS:]])
        with self._lock:
            if self._process is None:
                self._start()
            answer = self._ask(question, timeout_s)
        return Verdict(*json.loads(answer)) if answer else Verdict(False, is_parsed=False)

    def close(self) -> None:
        """End the process; it also ends by itself when this one does."""
        with self._lock:
            if self._process is not None:
                self._stop(self._process)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tinsmith.tasks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Its imports take seconds, which no comparison is charged for.
        if not self._ask(json.dumps(["1", "1"]), START_TIMEOUT_S):
            raise RuntimeError("the process that compares expressions does not start")

    def _ask(self, question: str, timeout_s: float) -> str:
        """The answer's line; empty, and the process gone, where none comes in time."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it died before it read the question
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            self._stop(process)
        return answer

    def _stop(self, process: subprocess.Popen[str]) -> None:
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what could not be flushed to a dead process
                continue
