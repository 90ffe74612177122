"""Runs the application in this process, from the first request to the last."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from ..errors import UsageError
from .admission import Admission
from .connection import KEEP_ALIVE_SECONDS, Connection
from .worker_threads import READING

_BACKLOG = 2048
_CLOSE_SECONDS = 2  # for the last bytes of responses to clients, once all requests have ended
_SWITCH_SECONDS = 0.0001


class DrainingServer(uvicorn.Server):
    """A server that ends in three steps.

    The first signal: requests that run go on, new ones get 503, and /health says so, which tells a load balancer. After
    `drain_seconds` those that are left end with an error. Then connections are closed. A second signal ends at once.

    complete  whether all requests ended by themselves
    """

    def __init__(
        self, config: uvicorn.Config, admission: Admission, drain_seconds: float, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._admission, self._drain_seconds, self._ready = admission, drain_seconds, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.signals: list[int] = []
        self.complete = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """A signal to end came, in the main thread."""
        self.signals.append(sig)
        self.drain()

    def drain(self) -> None:
        """Begin to end, or where that has begun, end at once. Any thread may call it."""
        if self._loop is None:  # it has not begun to listen
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drained())
        else:
            self.complete = self.complete and self._admission.running == 0
            self._admission.end_all()
            self.force_exit = self.should_exit = True

    async def _drained(self) -> None:
        ended = await self._admission.drain(self._drain_seconds)
        self.complete = self.complete and ended
        self.should_exit = True


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet. Raises UsageError where the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}; give an address of this machine") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"--host {host} --port {port}: cannot be had ({error.strerror or error}); end what uses it, or give "
            "another --port (0: any free one)"
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The address at which clients find a server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI, admission: Admission, drain_seconds: float, ready: Callable[[], None]) -> DrainingServer:
    """A server of an application. `ready` is called once it listens."""
    config = uvicorn.Config(
        app,
        http=Connection,
        backlog=_BACKLOG,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    return DrainingServer(config, admission, drain_seconds, ready)


def run(server: DrainingServer, bound: socket.socket) -> int:
    """Serve until a signal comes. Returns the exit code: 0 where all requests ended by themselves, otherwise 128 and
    the number of the signal."""
    share_the_lock()
    server.run(sockets=[bound])
    if server.complete or not server.signals:
        return 0
    return 128 + signal.Signals(server.signals[-1])


def leave(code: int) -> NoReturn:
    """End the process with an exit code. A thread that still reads a request is not waited for."""
    if READING.busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python's own end would abort the process from a thread that is in tokenizers (before 0.23)
    sys.exit(code)


def share_the_lock() -> None:
    """Ask threads to give Python's lock away after a tenth of a millisecond in place of five: the engine's thread gives
    it away at each step, and must get it back soon, whatever the event loop does."""
    sys.setswitchinterval(_SWITCH_SECONDS)
