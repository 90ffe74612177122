"""Whether an engine still works."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import RunError
from ..runtime.engine import Engine, EngineStats
from ..runtime.request_handle import RequestHandle

LONGEST_STEPS = {"cuda": 20.0, "cpu": 600.0}  # seconds, by the device of an artifact. Without a GPU it can take minutes
_WAIT_SECONDS = 0.5  # those who ask whether a server works often give up after a second


class WatchedEngine:
    """An engine as a server needs it (generating.py), which can be asked whether it still works. Belongs to one event
    loop.

    Each check is a request of the engine, one at a time: its `most_waiting` should have room for it.

    longest_step  seconds after which an engine that takes no step is said not to work
    submit        Engine.submit
    """

    def __init__(self, engine: Engine, longest_step: float) -> None:
        self.longest_step, self.submit = longest_step, engine.submit
        self._engine = engine
        self._check: _Check | None = None
        self._checking: asyncio.Task[None] | None = None
        self._checks = 0  # that have ended
        self._tokens = self._ended = 0  # tokens so far, and requests that had ended when the last of them was seen

    def stats(self) -> EngineStats:
        """As Engine.stats, without the requests of `check`."""
        stats = self._engine.stats()
        return replace(stats, ended=stats.ended - self._checks)

    async def check(self) -> None:
        """Raise RunError where the engine has taken no step for some seconds, also since its thread has ended, and
        where every request fails, as it does after some errors of a GPU. Takes half a second at most: in the middle of
        a longer step, the next call goes on waiting. Calls at the same time share one check.

        It submits a request and cancels it: that takes no time of the engine, and waits for no slot. Where requests
        have ended since the last token and there are no others, it lets the engine generate a token.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._checked())
        await asyncio.shield(self._checking)

    async def _checked(self) -> None:
        if self._check is None:
            suspicious = self._suspicious()
            self._check = _Check(self.submit([0], 1, stop_tokens=()), time.monotonic())
            if not suspicious:
                self._check.handle.cancel()
        check = self._check
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_SECONDS):
                await check.end()
        if check.handle.finish is None:
            if time.monotonic() - check.since > self.longest_step:
                raise RunError(f"the engine took no step for {self.longest_step:g} s")
            return
        self._check = None
        self._checks += 1
        if check.handle.error is not None:
            raise RunError(f"the engine fails: {check.handle.error}") from check.handle.error

    def _suspicious(self) -> bool:
        stats = self.stats()
        if stats.tokens != self._tokens:
            self._tokens, self._ended = stats.tokens, stats.ended
        return stats.ended > self._ended and not (stats.running or stats.waiting)


@dataclass(frozen=True)
class _Check:
    """A request whose end shows that the engine takes steps, and when it was submitted (monotonic)."""

    handle: RequestHandle
    since: float

    async def end(self) -> None:
        """Wait for its end."""
        with suppress(Exception):  # its error stays with it
            async for _ in self.handle:
                pass
