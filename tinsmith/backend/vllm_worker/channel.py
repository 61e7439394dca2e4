"""Messages between the server and its engine: a line of JSON each, over a socket."""

import json
import os
import queue
import socket
import threading


class Channel:
    """The engine's end. A thread reads, so that the engine ends with its server at any time."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def first(self) -> dict:
        """The order that comes first, and none of those behind it."""
        return self._orders.get()

    def take(self, wait: bool) -> list[dict]:
        """The orders that came, in their order; if there is none, `wait` for the next."""
        orders = [self._orders.get()] if wait else []
        while not self._orders.empty():
            orders.append(self._orders.get())
        return orders

    def say(self, message: dict) -> None:
        self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                self._orders.put(json.loads(line))
        os._exit(0)  # the server is gone, and nobody waits for what the engine is at
