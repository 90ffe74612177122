"""RequestHandle: what the caller of an engine holds for a request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Protocol

from .generation import Generation, GenerationRecord, Token
from .running_sequence import Request


class Driver(Protocol):
    """What takes the steps that bring tokens: the engine."""

    @property
    def driven(self) -> bool: ...

    def start(self) -> None: ...

    def step(self) -> bool: ...

    def cancel(self, handle: RequestHandle) -> None: ...


class RequestHandle(Iterator[Token], AsyncIterator[Token]):
    """A request of an engine. Iterating, with `for` or `async for`, gives its tokens as they come, each once.

    A request that failed raises its error after its last token. `async for` starts the engine's thread.
    """

    def __init__(self, driver: Driver, request: Request, on_token: Callable[[Token], object] | None) -> None:
        self.request = request
        self._driver, self._on_token = driver, on_token
        self._record = GenerationRecord((), time.perf_counter())  # `result` adds the prompt, if somebody wants it
        self._unread: deque[Token] = deque()
        self._changed = threading.Condition()
        self._finish: str | None = None
        self._error: Exception | None = None
        self._tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []  # which wait for a change

    @property
    def finish(self) -> str | None:
        """Why it ended, as in `Generation`, or "error"; None while it runs."""
        return self._finish

    @property
    def tokens(self) -> list[int]:
        """The ids of its tokens so far, read or not."""
        return list(self._record.generation.tokens)

    @property
    def reused_tokens(self) -> int:
        """Tokens of its prompt that were found in the cache; 0 before its first token."""
        return self._record.generation.reused_tokens

    @property
    def error(self) -> Exception | None:
        """What it failed with."""
        return self._error

    def cancel(self) -> None:
        """End it before the next step. Its tokens so far stay."""
        self._driver.cancel(self)

    def result(self) -> Generation:
        """Wait until it has ended; all of its tokens, read or not. Raises its error where it failed."""
        while self._finish is None:
            self._wait(lambda: self._finish is not None)
        if self._error is not None:
            raise self._error
        generation = self._record.generation
        if not generation.prompt_tokens:
            generation.prompt_tokens = list(self.request.prompt)
        return generation

    def __next__(self) -> Token:
        while True:
            with self._changed:
                if (token := self._next_unread(StopIteration)) is not None:
                    return token
            self._wait(lambda: bool(self._unread) or self._finish is not None)

    def __aiter__(self) -> AsyncIterator[Token]:
        self._driver.start()
        return self

    async def __anext__(self) -> Token:
        while True:
            with self._changed:
                if (token := self._next_unread(StopAsyncIteration)) is not None:
                    return token
                loop = asyncio.get_running_loop()
                change = loop.create_future()
                self._tasks.append((loop, change))
            await change

    # Called by the engine

    def put(self, token: Token, reused: int) -> None:
        """A token came, of a sequence that found so much of its prompt in the cache. Raises what the caller's
        `on_token` raises."""
        with self._changed:
            self._record.generation.reused_tokens = reused
            self._record.add(token)
            self._unread.append(token)
            self._notify()
        if self._on_token is not None:
            self._on_token(token)

    def end(self, finish: str, error: Exception | None) -> None:
        """It has ended."""
        with self._changed:
            self._record.end(finish)
            self._finish, self._error = finish, error
            self._notify()

    def _next_unread(self, at_the_end: type[Exception]) -> Token | None:
        """The next token; None where it has not come yet. After the last one it raises the request's error, or
        `at_the_end`."""
        if self._unread:
            return self._unread.popleft()
        if self._finish is None:
            return None
        raise self._error or at_the_end()

    def _notify(self) -> None:
        self._changed.notify_all()
        for loop, change in self._tasks:
            with suppress(RuntimeError):  # a loop that was closed: nobody waits
                loop.call_soon_threadsafe(_wake, change)
        self._tasks.clear()

    def _wait(self, changed: Callable[[], bool]) -> None:
        """Until something has changed, or with one more step where the engine has no thread."""
        if not self._driver.driven:
            self._driver.step()
            return
        with self._changed:
            self._changed.wait_for(changed)


def _wake(change: asyncio.Future[None]) -> None:
    if not change.done():  # a task that was cancelled waits no more
        change.set_result(None)
