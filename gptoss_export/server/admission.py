"""How many answers a server takes at a time, how long a request may take, and how a server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from .errors import FAILED, OVERLOADED, ApiError
from .settings import ServerSettings

_RETRY = "1"  # seconds until a client tries again, unless more is known


def _late(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer was not complete after {seconds:g} s; ask for fewer tokens (max_completion_tokens), or start the "
        "server with --request-seconds",
        FAILED,
        code="timeout",
    )


class Admission:
    """Lets requests in, and ends those that take too long. Belongs to one event loop.

    running  answers that are generated or wait. A request counts as one from the moment at which it is let in, before
             its body is read
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.running = 0
        self.draining = False
        self._admitted: set[Admitted] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def admitted(self, answer_count: int = 1) -> AsyncIterator[Admitted]:
        """Let a request in. Its `request_seconds` begin now.

        Raises ApiError for one too many, and while the server ends.
        """
        if self.draining:
            raise _ending("the server is ending; send the request to another one, or later")
        request = Admitted(self, self._settings.request_seconds)
        request.add(answer_count)
        self._admitted.add(request)
        try:
            yield request
        finally:
            self._admitted.discard(request)
            request.done()

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
        self.draining = True
        for request in self._admitted:
            request.end()

    def take(self, answer_count: int) -> None:
        """Count some more answers. Raises ApiError where they are too many."""
        most = self._settings.max_requests
        if self.running + answer_count > most:
            raise ApiError(
                429,
                f"found {self.running + answer_count} answers that are generated or wait, those of this request "
                f"counted, expected {most} at most; try again later",
                OVERLOADED,
                code="rate_limit_exceeded",
                headers={"retry-after": _RETRY},
            )
        self.count(answer_count)

    def count(self, more: int) -> None:
        """Count some more answers, or fewer."""
        self.running += more
        if self.running == 0:
            self._idle.set()
        else:
            self._idle.clear()


class Admitted:
    """A request that was let in.

    answer_count  how many answers it counts as
    """

    def __init__(self, admission: Admission, seconds: float) -> None:
        self.answer_count = 0
        self._admission, self._seconds = admission, seconds
        self._last_moment = asyncio.get_running_loop().time() + seconds
        self._deadline: asyncio.Timeout | None = None  # of the part that runs now
        self._ended = False  # the server does not wait for it any more

    def add(self, answer_count: int) -> None:
        """Count further answers of the request. Raises ApiError where too many answers run."""
        self._admission.take(answer_count)
        self.answer_count += answer_count

    def done(self) -> None:
        """Count it no more: its response is complete. Its client can send the next request before this one is over."""
        self._admission.count(-self.answer_count)
        self.answer_count = 0

    @asynccontextmanager
    async def in_time(self, late: Callable[[float], ApiError] = _late) -> AsyncIterator[None]:
        """Do a part of what the request needs; one part at a time. All parts together have `request_seconds`.

        late  the error where the time is over, which gets these seconds

        Raises this ApiError, and another one where the server ends.
        """
        deadline = self._deadline = asyncio.timeout_at(self._last_moment)
        try:
            async with deadline:
                if self._ended:
                    self.end()
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            if self._ended:
                raise _ending("the server has ended before this answer was complete; try again later") from None
            raise late(self._seconds) from None
        finally:
            self._deadline = None

    def end(self) -> None:
        """End it now, with an error."""
        self._ended = True
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())


def _ending(message: str) -> ApiError:
    return ApiError(503, message, FAILED, code="server_ending", headers={"retry-after": "5"})
