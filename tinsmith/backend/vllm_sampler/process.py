"""One vLLM engine in a child process: orders to it, events from it, and its death."""

import json
import logging
import queue
import re
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinsmith.backend.vllm_sampler.launch import Launch

WORKER = Path(__file__).parents[1] / "vllm_worker"
# A busy engine says every second that it steps; a starting one compiles and reads weights.
STUCK_S = 300.0
STARTING_S = 1800.0
POLL_S = 0.5
READ_BYTES = 1 << 20
KEPT_LINES = 200
ERROR_LINE = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception|Killed)\b: .*)")
log = logging.getLogger(__name__)


class VllmProcess:
    """A child that runs `vllm_worker`. Its death, whatever its cause, is the event `died`."""

    def __init__(self, launch: Launch, on_event: Callable[[], None], stuck_s: float = STUCK_S):
        self._on_event = on_event
        self._stuck_s = stuck_s
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._ready = False
        self._busy = False
        self._heard_s = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [str(launch.python), str(WORKER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=dict(launch.environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the client
            )
        self._socket = ours
        self._socket.settimeout(POLL_S)
        self._writing = threading.Lock()
        self._threads = [
            threading.Thread(target=self._read_output, name="vllm-output", daemon=True),
            threading.Thread(target=self._read_events, name="vllm-events", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.say(dict(launch.engine))

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def has_events(self) -> bool:
        return not self._events.empty()

    def take(self) -> list[dict[str, Any]]:
        """The events that came since the last call, in their order."""
        events = []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def wait(self) -> dict[str, Any]:
        """The next event."""
        return self._events.get()

    def expect_answers(self, is_busy: bool) -> None:
        """Say whether the engine has work; one that has, and says nothing, is stuck."""
        if is_busy and not self._busy:
            self._heard_s = time.monotonic()
        self._busy = is_busy

    def say(self, order: dict[str, Any]) -> None:
        """Send an order; an engine that is dead is told nothing, and its death is an event."""
        data = memoryview(json.dumps(order, separators=(",", ":")).encode() + b"\n")
        with self._writing:
            while data:
                try:
                    data = data[self._socket.send(data) :]
                except TimeoutError:
                    continue  # it does not read; if it is stuck, it is killed
                except OSError:
                    return

    def stop(self) -> None:
        """End the child and the threads that listen to it."""
        self._child.kill()
        self._child.wait()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def last_words(self) -> str:
        """The last error that the child printed, or its last line."""
        return last_words(self._lines)

    def _read_output(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                log.info("vllm[%d]: %s", self._child.pid, line.rstrip())

    def _read_events(self) -> None:
        rest = b""
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except TimeoutError:
                self._kill_if_stuck()
                continue
            except OSError:  # a reset, or our own end of it is closed
                data = b""
            if not data:
                break
            self._heard_s = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._note(json.loads(line))
        self._child.kill()  # with its socket gone it is of no use, if it is alive
        self._threads[0].join()
        self._note({"event": "died", "code": self._child.wait()})

    def _note(self, event: dict[str, Any]) -> None:
        self._ready |= event["event"] == "ready"
        if event["event"] != "alive":
            self._events.put(event)
            self._on_event()

    def _kill_if_stuck(self) -> None:
        limit_s = self._stuck_s if self._ready else STARTING_S
        silence_s = time.monotonic() - self._heard_s
        is_owing = self._events.empty() and (self._busy or not self._ready)
        if is_owing and silence_s > limit_s:
            log.error("the vLLM engine said nothing for %.0f s and is killed", silence_s)
            self._child.kill()


def last_words(lines: Iterable[str]) -> str:
    """Of what a program printed: its last error, else its last line."""
    printed = [line for line in lines if line.strip()]
    errors = [match[1] for line in printed if (match := ERROR_LINE.search(line))]
    return (errors or printed or ["it said nothing"])[-1].strip().removesuffix(".")
