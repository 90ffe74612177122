"""Where the deltas of a request's answers go: into events of a stream, or into one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .deltas import Delta, Finish
from .errors import ApiError


@dataclass(frozen=True)
class Usage:
    """Tokens of a request.

    reused     of its prompts, found in the KV cache and not computed again
    reasoning  of the generated ones
    """

    prompt: int
    reused: int
    generated: int
    reasoning: int


class Sink(Protocol):
    """Writes the response of one request."""

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """What new tokens add to an answer. index: of the answer, among those of the request."""

    async def finish(self, index: int, reason: Finish) -> None:
        """An answer has ended."""

    async def close(self, usage: Usage) -> None:
        """All answers have ended."""

    async def fail(self, error: ApiError) -> None:
        """The response has begun, and cannot go on."""


class WholeSink:
    """What sinks share that send the response in one piece."""

    async def fail(self, error: ApiError) -> None:
        """Adds nothing: where the response has begun, all of it was sent."""
