"""Whether an engine still works."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import RunError
from ..runtime.engine import Engine, EngineStats
from ..runtime.generation import Token
from ..runtime.request_handle import RequestHandle
from ..runtime.sampling_params import SamplingParams

_REMEMBERED = 8  # requests
_SUSPICIOUS = 3  # failed in a row
_WAIT_SECONDS = 2.0


class WatchedEngine:
    """An engine as a server needs it (server/generating.py), which can be asked whether it still works."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._latest: deque[RequestHandle] = deque(maxlen=_REMEMBERED)
        self._check: _Check | None = None
        self._checks = 0  # that have ended

    def submit(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stop_tokens: Sequence[int] | None = None,
        *,
        on_token: Callable[[Token], object] | None = None,
        allowed: Callable[[Sequence[int]], bytes] | None = None,
    ) -> RequestHandle:
        """As Engine.submit."""
        handle = self._engine.submit(prompt, max_new_tokens, sampling, stop_tokens, on_token=on_token, allowed=allowed)
        self._latest.append(handle)
        return handle

    def stats(self) -> EngineStats:
        """As Engine.stats, without the requests of `check`."""
        stats = self._engine.stats()
        return replace(stats, ended=stats.ended - self._checks)

    async def check(self, longest_step: float) -> None:
        """Raise RunError where the engine has taken no step for some seconds, also since its thread has ended, and
        where every request fails, as it does after some errors of a GPU. Takes two seconds at most: in the middle of a
        longer step, the next call goes on waiting.

        It submits a request and cancels it: that takes no time of the engine, and waits for no slot. Where the latest
        requests have failed and there are no others, it lets the engine generate a token.
        """
        if self._check is None:
            failing = self._failing()
            self._check = _Check(self._engine.submit([0], 1, stop_tokens=()), time.monotonic())
            if not failing:
                self._check.handle.cancel()
        check = self._check
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_SECONDS):
                await check.end()
        if check.handle.finish is None:
            if time.monotonic() - check.since > longest_step:
                raise RunError(f"the engine took no step for {longest_step:g} s")
            return
        self._check = None
        self._checks += 1
        if check.handle.error is not None:
            raise RunError(f"the engine fails: {check.handle.error}") from check.handle.error

    def _failing(self) -> bool:
        stats = self._engine.stats()
        if stats.running or stats.waiting:
            return False
        ended = [handle for handle in self._latest if handle.finish is not None]
        return len(ended) >= _SUSPICIOUS and all(handle.finish == "error" for handle in ended[-_SUSPICIOUS:])


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
