"""What the log and the figures say of one request."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from starlette.types import Scope

from .generating import Arrived
from .metrics import Metrics

_KEY = "gptoss.record"  # in a scope


@dataclass
class Record:
    """A request on its way. Holds nothing of what is said.

    outcome  "ok", "error" (the client's), "failed" (the server's), "disconnected", "timeout", "overloaded" or "ended"
    finish   why its answers ended
    """

    path: str
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    start: float = field(default_factory=time.perf_counter)
    status: int | None = None
    outcome: str = "ok"
    error: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: float | None = None
    finish: list[str] = field(default_factory=list)
    _last: dict[int, float] = field(default_factory=dict)  # when the last token of an answer came

    def arrived(self, arrived: Arrived, metrics: Metrics) -> None:
        """Tokens of an answer came."""
        for at in arrived.times:
            last = self._last.get(arrived.index)
            if last is None:
                metrics.first_token(at - self.start)
                if self.first_token_s is None:
                    self.first_token_s = at - self.start
            else:
                metrics.between_tokens(at - last)
            self._last[arrived.index] = at
        self.generated_tokens += len(arrived.tokens)
        metrics.tokens(len(arrived.tokens))

    def keep(self, scope: Scope) -> None:
        """Put it where the code that answers the request finds it."""
        scope[_KEY] = self

    @staticmethod
    def of(scope: Scope) -> Record:
        """The record of the request that a scope describes."""
        record: Record = scope[_KEY]
        return record
