"""A client's connection, which ends also where the client does nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

KEEP_ALIVE_SECONDS = 60  # longer than clients keep an idle connection, so that none meets one that is being closed


class Connection(H11Protocol):
    """uvicorn's connection, with h11: that refuses a head of a request without an end, which httptools would keep.

    uvicorn closes a connection that is idle after a response. It waits for ever for the first request, for the rest of
    a request's head, and for a client that does not read the end of a response. Such a connection is cut here once no
    request begins and no byte of a response leaves for KEEP_ALIVE_SECONDS. It is looked at as often, so that this can
    take twice as long.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._seen: tuple[RequestResponseCycle | None, int] | None = None
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._look.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._look = self.loop.call_later(KEEP_ALIVE_SECONDS, self._look_at_it)

    def _look_at_it(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
        seen = None if answering else (self.cycle, self.transport.get_write_buffer_size())
        if seen is not None and seen == self._seen:
            self.transport.abort()
            return
        self._seen = seen
        self._look_later()
