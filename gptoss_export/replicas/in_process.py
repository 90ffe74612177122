"""Runs an ASGI application on a call, in this process, and gives its response in parts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Scope

from .calls import ALIVE, Call, Header, Part


class UnreadResponse:
    """What the application has sent and nobody has taken yet.

    There is no limit to it but the length of an answer: the application does not wait for who reads.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._headers: tuple[Header, ...] = ()
        self._body: list[bytes] = []
        self._some, self._ended = asyncio.Event(), asyncio.Event()
        self._complete = False

    async def send(self, message: Message) -> None:
        """The application sends."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], tuple(message["headers"])
            return  # a part is sent with the first of the body
        self._body.append(message.get("body", b""))
        self._some.set()
        if not message.get("more_body", False):
            self._complete = True
            self.end()

    def end(self) -> None:
        """Nothing more comes."""
        self._some.set()
        self._ended.set()

    async def some(self, seconds: float) -> bool:
        """Whether there is something to take, after some seconds at most."""
        return await _happened(self._some, seconds)

    async def ended(self, seconds: float) -> bool:
        """Whether nothing more comes, after some seconds at most."""
        return await _happened(self._ended, seconds)

    def take(self) -> Part:
        """All of it."""
        part = Part(self._status, self._headers, b"".join(self._body), self._complete)
        self._status, self._headers = None, ()
        self._body.clear()
        self._some.clear()
        return part


async def _happened(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def parts(app: ASGIApp, call: Call, beat: float, spacing: Callable[[], float]) -> AsyncGenerator[Part, None]:
    """The response, in parts as they come; ALIVE where there is nothing for `beat` seconds.

    spacing  least time between two parts, in seconds: what comes meanwhile is joined

    Where this is closed or cancelled, the application is too. Raises what it raises.
    """
    response = UnreadResponse()
    working = asyncio.create_task(_run(app, call, response))
    last = -math.inf
    try:
        while True:
            if not await response.some(beat):
                yield ALIVE
                continue
            if (early := last + spacing() - time.monotonic()) > 0:
                await response.ended(early)
            last = time.monotonic()
            part = response.take()
            if not part.last and working.done():
                working.result()
                raise RuntimeError(f"{call.method} {call.path}: the application has ended before its response")
            yield part
            if part.last:
                return
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working


async def whole(app: ASGIApp, call: Call) -> Part:
    """The response in one part."""
    response = UnreadResponse()
    await _run(app, call, response)
    return response.take()


async def _run(app: ASGIApp, call: Call, response: UnreadResponse) -> None:
    received = False

    async def receive() -> Message:
        nonlocal received
        if received:  # the client is there until this is cancelled
            await asyncio.get_running_loop().create_future()
        received = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    try:
        await app(_scope(call), receive, response.send)
    finally:
        response.end()


def _scope(call: Call) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode("utf-8", "surrogateescape"),
        "query_string": call.query,
        "root_path": "",
        "headers": list(call.headers),
        "client": call.client,
        "server": None,
        "state": {},
    }
