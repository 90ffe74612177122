"""A path that takes a request in JSON and has an answer generated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors import UsageError
from .body import read_body
from .errors import ApiError, invalid
from .record import Record
from .recording import note
from .serving import Serving
from .sse import Reply

Answers = Callable[[Serving, Record, bytes, Reply], Awaitable[None]]


class Endpoint:
    """An ASGI application for one path. A client that goes away ends its request at once, streamed or not."""

    def __init__(self, serving: Serving, answers: Answers) -> None:
        self._serving, self._answers = serving, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record, reply = Record.of(scope), Reply(send)
        try:
            body = await read_body(scope, receive, self._serving.settings)
            await while_connected(receive, self._answer(record, body, reply), lambda: reply.complete)
        except ClientDisconnect:
            record.outcome = "disconnected"
        except (ApiError, UsageError) as problem:
            error = problem if isinstance(problem, ApiError) else invalid(None, " ".join(str(problem).split()))
            note(record, error)
            await error.response()(scope, receive, send)

    async def _answer(self, record: Record, body: bytes, reply: Reply) -> None:
        await self._answers(self._serving, record, body, reply)


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, None], complete: Callable[[], bool] = lambda: False
) -> None:
    """Do some work while the client waits for it. complete: whether the response was sent, which looks as if the client
    had gone away.

    Raises what the work raises, and ClientDisconnect once the client is gone, after the work was cancelled.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not complete():
            raise ClientDisconnect
        await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Wait until the client has gone away, or the response is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
