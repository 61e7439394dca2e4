"""Ranks that die are seen at once, whoever may be waiting for them."""

import logging
import subprocess
import threading
from collections.abc import Callable, Sequence

# By when the end of a process is known whose connections have broken.
SEEN_S = 5.0
log = logging.getLogger(__name__)


class Watch:
    """Waits for each of the other ranks' processes. When one dies, the others are ended too: in
    the middle of a gathering they would wait for it, with NCCL for many minutes."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """`processes` are those of the ranks from 1 on."""
        self._processes = processes
        self._changed = threading.Condition()
        self._is_over = False
        self._loss: str | None = None  # the first
        self.on_loss: Callable[[RuntimeError], None] = lambda _: None

    def start(self) -> None:
        """Watch from now on."""
        for rank in range(1, 1 + len(self._processes)):
            name = f"watch of rank {rank}"
            threading.Thread(target=self._wait, args=[rank], name=name, daemon=True).start()

    def close(self) -> None:
        """From now on processes may end."""
        with self._changed:
            self._is_over = True

    @property
    def has_loss(self) -> bool:
        """Whether a rank has died, and so all."""
        return self._loss is not None

    def gone(self, rank: int) -> RuntimeError:
        """What to tell of a rank whose process has ended, or is about to: which was the first."""
        code = self._processes[rank - 1].wait()
        return self._note(f"the training process of rank {rank} has ended (exit code {code}; its "
                          "last words are in the server's log)")  # fmt: skip

    def end_all(self, error: Exception) -> RuntimeError:
        """Ranks wait for each other at different places, as `error` says, and none can go on. What
        to tell of it: whose process died first, if one did, else the error."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_loss, SEEN_S)
        told = self._note(f"the ranks have lost each other ({type(error).__name__}: {error})")
        self._kill_all()
        return told

    def _wait(self, rank: int) -> None:
        self._processes[rank - 1].wait()
        with self._changed:
            if self._is_over:
                return
            self._is_over = True
        loss = self.gone(rank)
        log.critical("%s", loss)
        self._kill_all()
        self.on_loss(loss)

    def _kill_all(self) -> None:
        for process in self._processes:
            process.kill()

    def _note(self, words: str) -> RuntimeError:
        with self._changed:
            self._loss = self._loss or words
            self._changed.notify_all()
        return RuntimeError(f"{self._loss}; restart the server and go on from a checkpoint")
