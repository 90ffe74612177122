"""A path that takes a request in JSON and has answers generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors import UsageError
from .admission import Admitted
from .body import read_body
from .errors import ApiError, invalid
from .record import Record
from .recording import note
from .serving import Job, Serving, serve_orders
from .sse import Reply
from .while_connected import while_connected
from .worker_threads import READING

# Reads the body of a request, in a thread. The job writes to the reply. Raises ApiError and UsageError.
Handler = Callable[[Serving, bytes, Reply], Job]


class Endpoint:
    """An ASGI application for one path. A client that goes away ends its request at once, streamed or not."""

    def __init__(self, serving: Serving, handler: Handler) -> None:
        self._serving, self._handler = serving, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record, reply = Record.of(scope), Reply(send)
        try:
            # Before the body is read: a request that is refused costs no memory and no time.
            async with self._serving.admission.admitted() as admitted:
                body = await read_body(scope, receive, admitted, self._serving.settings.max_body)
                work = self._answer(record, admitted, body, reply)
                del body  # the work gives it back once it was read
                await while_connected(receive, work, lambda: reply.complete)
        except ClientDisconnect:
            record.outcome = "disconnected"
        except (ApiError, UsageError) as problem:
            error = problem if isinstance(problem, ApiError) else invalid(None, " ".join(str(problem).split()))
            note(record, error)
            await error.response()(scope, receive, send)

    async def _answer(self, record: Record, admitted: Admitted, body: bytes, reply: Reply) -> None:
        async with admitted.in_time():
            loop = asyncio.get_running_loop()
            job = await loop.run_in_executor(READING, self._handler, self._serving, body, reply)
        del body
        await serve_orders(self._serving, record, admitted, reply, job)
