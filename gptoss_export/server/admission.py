"""How many answers a server takes at a time, how long a request may take, and how a server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .errors import FAILED, OVERLOADED, ApiError, invalid
from .settings import ServerSettings

_RETRY = "1"  # seconds until a client tries again, unless more is known


class Admission:
    """Lets requests in, and ends those that take too long. Belongs to one event loop.

    running  answers that are generated or wait
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.running = 0
        self.draining = False
        self._ended = False  # the time to drain is over
        self._deadlines: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def admitted(self, answers: int) -> AsyncIterator[None]:
        """Run a request of some answers, in `request_seconds` at most.

        Raises ApiError for one too many, while the server ends, and where the time is over.
        """
        if self.draining:
            raise _ending("the server is ending; send the request to another one, or later")
        most = self._settings.max_requests
        if answers > most:
            raise invalid("n", f"found {answers} answers in one request, expected {most} at most; ask for fewer")
        if self.running + answers > most:
            raise ApiError(
                429,
                f"{self.running} answers are generated or wait, and this request asks for {answers}; expected {most} "
                "at most; try again later",
                OVERLOADED,
                code="rate_limit_exceeded",
                headers={"retry-after": _RETRY},
            )
        self.running += answers
        self._idle.clear()
        try:
            async with asyncio.timeout(self._settings.request_seconds) as deadline:
                self._deadlines.add(deadline)
                try:
                    yield
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError:
            if not deadline.expired():
                raise
            if self._ended:
                raise _ending("the server has ended before this answer was complete; try again later") from None
            raise ApiError(
                504,
                f"the answer was not complete after {self._settings.request_seconds:g} s; ask for fewer tokens "
                "(max_completion_tokens), or start the server with --request-seconds",
                FAILED,
                code="timeout",
            ) from None
        finally:
            self.running -= answers
            if self.running == 0:
                self._idle.set()

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Wait for the first token, in `queue_seconds` at most. Raises ApiError where the time is over."""
        seconds = self._settings.queue_seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ApiError(
                503,
                f"the request waited {seconds:g} s for its first token; try again later",
                OVERLOADED,
                code="queue_timeout",
                headers={"retry-after": _RETRY},
            ) from None

    async def drain(self, seconds: float) -> bool:
        """Let in nobody any more, and wait for those that run; after some seconds, end them. Returns whether all ended
        by themselves."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
            return True
        except TimeoutError:
            self.end_all()
            return False

    def end_all(self) -> None:
        """End all requests now, with an error."""
        self.draining = self._ended = True
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(now)


def _ending(message: str) -> ApiError:
    return ApiError(503, message, FAILED, code="server_ending", headers={"retry-after": "5"})
