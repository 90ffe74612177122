"""Work that goes on only while the client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, None], complete: Callable[[], bool] = lambda: False
) -> None:
    """Do some work, and cancel it where the client goes away.

    complete  whether the last bytes of the response were sent. A server says that the client has gone away then too

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
