"""The line between the server's process and that of another rank: a JSON command and tensors."""

import json
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save

SIZE_BYTES = 8
COMMAND = "command"
Command = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


class Link:
    """One end of a connected socket. A message is its length, then a safetensors file in memory
    whose tensor `command` is JSON: nothing is unpickled."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._reader = end.makefile("rb")

    def send(self, command: Command, arrays: Arrays | None = None) -> None:
        """Raises OSError if the other end is gone."""
        text = np.frombuffer(json.dumps(command).encode(), dtype=np.uint8)
        whole = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        payload = save({**whole, COMMAND: text})
        self._socket.sendall(len(payload).to_bytes(SIZE_BYTES, "big"))
        self._socket.sendall(payload)

    def receive(self) -> tuple[Command, dict[str, np.ndarray]]:
        """Wait for the next message. Raises EOFError if the other end is gone."""
        size = int.from_bytes(self._read(SIZE_BYTES), "big")
        arrays = load(self._read(size))
        return json.loads(arrays.pop(COMMAND).tobytes()), arrays

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        payload = self._reader.read(size)
        if len(payload) < size:
            raise EOFError("the other end of the line is gone")
        return payload
