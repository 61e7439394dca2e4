"""Checkpoints end with their time to live, whether anybody asks for them or not."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tinsmith.backend.storage.store import Store

PERIOD_S = 5.0
log = logging.getLogger(__name__)


@contextmanager
def expiring_checkpoints(store: Store) -> Iterator[None]:
    """While the block runs, remove every few seconds the checkpoints whose time has passed."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(PERIOD_S):
            try:
                store.remove_expired()
            except (OSError, sqlite3.Error):  # a full or busy disk: the next round tries again
                log.exception("expired checkpoints could not be removed")

    watcher = threading.Thread(target=watch, name="expiry", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
