"""From the engine's thread to the event loop: the answers of one request, as their tokens come.

The engine's thread never waits for a client. Tokens of an answer wait in its handle, which are numbers, at most as many
as the answer can have. A task that is late takes all that have come meanwhile, so that its text is made at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from ..runtime.checked_tokens import CheckedTokens
from ..runtime.generation import Token
from ..runtime.sampling_params import SamplingParams
from .engine_health import WatchedEngine

Allowed = Callable[[Sequence[int]], bytes]


@dataclass(frozen=True)
class Order:
    """What the engine gets for one answer. Orders of one prompt share it.

    allowed  as Engine.submit has it. It keeps state of one answer
    adapter  as Engine.submit has it
    """

    prompt: CheckedTokens
    max_new_tokens: int
    sampling: SamplingParams
    stop_tokens: tuple[int, ...]
    allowed: Allowed | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Arrived:
    """Tokens of an answer that have come since the last ones, each with the time at which it came (perf_counter).

    index   of the answer among those of its request
    finish  why the answer has ended, as Generation has it; None while it goes on
    """

    index: int
    tokens: list[Token]
    times: list[float]
    finish: str | None = None


class RunningAnswer:
    """One answer that the engine generates."""

    def __init__(self, engine: WatchedEngine, index: int, order: Order) -> None:
        self.index = index
        self._times: deque[float] = deque()
        self._come = self._taken = 0
        self._handle = engine.submit(
            order.prompt,
            order.max_new_tokens,
            order.sampling,
            order.stop_tokens,
            on_token=self._on_token,
            allowed=order.allowed,
            adapter=order.adapter,
        )

    @property
    def reused_tokens(self) -> int:
        """Tokens of its prompt that were found in the KV cache."""
        return self._handle.reused_tokens

    def cancel(self) -> None:
        """End it before the next step of the engine, which frees its pages."""
        if self._handle.finish is None:
            self._handle.cancel()

    async def take(self) -> Arrived:
        """Wait for one token or more, or for the end. Raises the error that ended it."""
        try:
            tokens = [await anext(self._handle)]
        except StopAsyncIteration:
            return Arrived(self.index, [], [], self._handle.finish or "")
        # A token can be read before it is counted, so that none of these waits.
        while self._taken + len(tokens) < self._come:
            tokens.append(next(self._handle))
        self._taken += len(tokens)
        times = [self._times.popleft() for _ in range(min(len(tokens), len(self._times)))]
        return Arrived(self.index, tokens, times)

    def _on_token(self, token: Token) -> None:
        """Called by the engine's thread."""
        self._times.append(time.perf_counter())
        self._come += 1


async def arrivals(answers: Sequence[RunningAnswer]) -> AsyncGenerator[Arrived, None]:
    """The tokens of all answers as they come, each answer's end once. Raises the error of the first that fails."""
    if len(answers) == 1:
        while (arrived := await answers[0].take()).finish is None:
            yield arrived
        yield arrived
        return
    waiting = {asyncio.ensure_future(answer.take()): answer for answer in answers}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = waiting.pop(task)
                arrived = task.result()
                if arrived.finish is None:
                    waiting[asyncio.ensure_future(answer.take())] = answer
                yield arrived
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
