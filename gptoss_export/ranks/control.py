"""What ranks tell each other besides the calls: how they start, that they are ready, why they end. Objects of JSON, a
line each, over a socket that a process holds as long as it lives."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any


class Control:
    """One end of the socket between rank 0 and another rank."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lines = connected.makefile("rb")

    def send(self, **message: Any) -> None:
        """Raises OSError where the other end is gone."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the other end is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        """End the connection. A thread that waits in `receive` gets None."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
