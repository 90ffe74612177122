"""Responses as OpenAI's API has them: an object, or named events of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .deltas import Delta, Finish
from .errors import ApiError
from .logprobs import logprobs_json
from .response_object import ResponseFacts
from .response_output import Event, ResponseOutput
from .sinks import Usage, WholeSink
from .sse import Reply, event

_Status = Literal["completed", "incomplete"]


class WholeResponse(WholeSink):
    """A response in one object. top_logprobs: None: no log probabilities."""

    def __init__(self, facts: ResponseFacts, top_logprobs: int | None, reply: Reply) -> None:
        self._facts, self._top, self._reply = facts, top_logprobs, reply
        self._output = ResponseOutput()
        self._status: _Status = "completed"

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Keeps them."""
        for delta in deltas:
            self._push(delta)

    async def finish(self, index: int, reason: Finish) -> None:
        """Keeps it."""
        self._status = "incomplete" if reason == "length" else "completed"

    async def close(self, usage: Usage) -> None:
        """Sends the object."""
        await self._reply.json(self._facts.to_json(self._status, self._output.items, usage))

    def _push(self, delta: Delta) -> list[Event]:
        logprobs: list[dict[str, Any]] = []
        if self._top is not None:
            logprobs = logprobs_json(delta.tokens, self._facts.model.token_bytes, self._top)
        return self._output.push(delta, logprobs)


class ResponseEvents(WholeResponse):
    """A response in events, each with its number."""

    def __init__(self, facts: ResponseFacts, top_logprobs: int | None, reply: Reply) -> None:
        super().__init__(facts, top_logprobs, reply)
        self._number = 0

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Sends events."""
        events = self._begin()
        for delta in deltas:
            events += b"".join(self._event(grown) for grown in self._push(delta))
        await self._reply.events(events)

    async def close(self, usage: Usage) -> None:
        """Ends the stream with the whole response."""
        response = self._facts.to_json(self._status, self._output.items, usage)
        await self._reply.end(self._begin() + self._event({"type": f"response.{self._status}", "response": response}))

    async def fail(self, error: ApiError) -> None:
        """Ends the stream with an error."""
        # Of OpenAI's codes of a failed response, three can be meant.
        clients = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt"
        code = clients if error.status < 500 else "server_error"
        failed = self._facts.to_json("failed", self._output.items, error={"code": code, "message": error.message})
        events = self._event(error.event()) + self._event({"type": "response.failed", "response": failed})
        await self._reply.end(self._begin() + events)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        response = self._facts.to_json("in_progress", [])
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event({"type": kind, "response": response}) for kind in kinds)

    def _event(self, value: Event) -> bytes:
        numbered = {"type": value["type"], "sequence_number": self._number, **value}
        self._number += 1
        return event(numbered, value["type"])
