"""A completion as chunks of a stream, of chats and of plain text."""

from __future__ import annotations

from typing import Any

from .completion_facts import CompletionFacts, usage_json
from .errors import ApiError
from .sinks import Usage
from .sse import DONE, Reply, error_event, event


class CompletionStream:
    """Writes chunks, and the end of the stream.

    kind        what a chunk says that it is
    with_usage  whether the last chunk has the tokens of the request
    """

    def __init__(self, facts: CompletionFacts, kind: str, reply: Reply, with_usage: bool) -> None:
        self._reply, self._with_usage = reply, with_usage
        self._head = facts.head(kind)

    async def close(self, usage: Usage) -> None:
        """Ends the stream."""
        events = b""
        if self._with_usage:
            events = event({**self._head, "choices": [], "usage": usage_json(usage)})
        await self._reply.end(events + DONE)

    async def fail(self, error: ApiError) -> None:
        """Ends the stream with an error."""
        await self._reply.end(error_event(error) + DONE)

    def _chunk_of(self, choice: dict[str, Any]) -> bytes:
        """A chunk with something of one answer."""
        chunk = {**self._head, "choices": [choice]}
        return event({**chunk, "usage": None} if self._with_usage else chunk)
