"""Chat completions as OpenAI's API has them: an object, or chunks of a stream."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .deltas import Delta, Finish
from .errors import ApiError
from .logprobs import logprobs_json
from .served_model import ServedModel
from .sinks import Usage
from .sse import DONE, Reply, error_event, event

_GAP = "\n\n"  # between messages of one kind, which clients see as one text


@dataclass(frozen=True)
class Completion:
    """What all parts of a response say.

    top_logprobs  None: no log probabilities
    """

    model: ServedModel
    id: str
    created: int
    top_logprobs: int | None = None

    def head(self, kind: str) -> dict[str, Any]:
        """The first fields."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}

    def logprobs(self, delta: Delta) -> list[dict[str, Any]]:
        """Those of the tokens of a delta."""
        if self.top_logprobs is None:
            return []
        return logprobs_json(delta.tokens, self.model.token_bytes, self.top_logprobs)


@dataclass
class _Joined:
    """The messages of one answer as one message: what was written of each kind, and the calls."""

    texts: dict[str, list[str]] = field(default_factory=lambda: {"content": [], "reasoning": []})
    calls: list[dict[str, Any]] = field(default_factory=list)
    _gaps: set[str] = field(default_factory=set)  # kinds whose next text comes after a gap

    def text(self, delta: Delta) -> str:
        """The text of a delta, after a gap where a message of its kind came before."""
        texts, text = self.texts[delta.kind], delta.text
        if delta.begins and texts:
            self._gaps.add(delta.kind)
        if text and delta.kind in self._gaps:
            self._gaps.discard(delta.kind)
            text = _GAP + text
        if text:
            texts.append(text)
        return text

    def call(self, delta: Delta) -> dict[str, Any]:
        """The call that a delta is a part of, as it is now. It has an id from its beginning on."""
        if delta.begins:
            call = {"id": f"call_{uuid.uuid4().hex}", "type": "function"}
            self.calls.append(call | {"function": {"name": delta.function, "arguments": ""}})
        function: dict[str, Any] = self.calls[-1]["function"]
        function["arguments"] += delta.text
        return self.calls[-1]


def usage_json(usage: Usage) -> dict[str, Any]:
    """Tokens of a request, as chat completions and completions have them."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class WholeChat:
    """A chat completion in one object."""

    def __init__(self, completion: Completion, answers: int, reply: Reply) -> None:
        self._completion, self._reply = completion, reply
        self._joined = [_Joined() for _ in range(answers)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(answers)]
        self._reasons: dict[int, Finish] = {}

    async def deltas(self, answer: int, deltas: Sequence[Delta]) -> None:
        """Keeps them."""
        for delta in deltas:
            if delta.kind == "call":
                self._joined[answer].call(delta)
            else:
                self._joined[answer].text(delta)
            self._logprobs[answer] += self._completion.logprobs(delta)

    async def finish(self, answer: int, reason: Finish) -> None:
        """Keeps it."""
        self._reasons[answer] = reason

    async def close(self, usage: Usage) -> None:
        """Sends the object."""
        choices = [self._choice(index) for index in range(len(self._joined))]
        head = self._completion.head("chat.completion")
        await self._reply.json({**head, "choices": choices, "usage": usage_json(usage)})

    async def fail(self, error: ApiError) -> None:
        """Never needed: the response begins with its end."""
        raise error

    def _choice(self, index: int) -> dict[str, Any]:
        joined = self._joined[index]
        content, reasoning = ("".join(joined.texts[kind]) for kind in ("content", "reasoning"))
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if not content and joined.calls:
            message["content"] = None
        if reasoning:
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if joined.calls:
            message["tool_calls"] = joined.calls
        wanted = self._completion.top_logprobs is not None
        logprobs = {"content": self._logprobs[index], "refusal": None} if wanted else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._reasons[index]}


class ChatChunks:
    """A chat completion in chunks."""

    def __init__(self, completion: Completion, answers: int, reply: Reply, usage: bool) -> None:
        self._completion, self._reply, self._with_usage = completion, reply, usage
        self._head = completion.head("chat.completion.chunk")
        self._joined = [_Joined() for _ in range(answers)]
        self._begun: set[int] = set()

    async def deltas(self, answer: int, deltas: Sequence[Delta]) -> None:
        """Sends a chunk for each."""
        await self._reply.events(self._begin(answer) + b"".join(self._delta(answer, delta) for delta in deltas))

    async def finish(self, answer: int, reason: Finish) -> None:
        """Sends the last chunk of an answer."""
        await self._reply.events(self._begin(answer) + self._chunk(answer, {}, reason))

    async def close(self, usage: Usage) -> None:
        """Ends the stream."""
        events = b""
        if self._with_usage:
            events = event({**self._head, "choices": [], "usage": usage_json(usage)})
        await self._reply.end(events + DONE)

    async def fail(self, error: ApiError) -> None:
        """Ends the stream with an error."""
        await self._reply.end(error_event(error) + DONE)

    def _begin(self, answer: int) -> bytes:
        if answer in self._begun:
            return b""
        self._begun.add(answer)
        return self._chunk(answer, {"role": "assistant", "content": ""})

    def _delta(self, answer: int, delta: Delta) -> bytes:
        joined = self._joined[answer]
        logprobs = self._completion.logprobs(delta)
        if delta.kind == "call":
            return self._call(answer, delta)
        text = joined.text(delta)
        if not text and not logprobs:
            return b""
        if delta.kind == "reasoning":
            return self._chunk(answer, {"reasoning_content": text, "reasoning": text})
        return self._chunk(answer, {"content": text}, logprobs=logprobs)

    def _call(self, answer: int, delta: Delta) -> bytes:
        joined = self._joined[answer]
        call = joined.call(delta)
        function: dict[str, Any] = {"arguments": delta.text}
        part: dict[str, Any] = {"index": len(joined.calls) - 1, "function": function}
        if delta.begins:
            function["name"] = delta.function
            part |= {"id": call["id"], "type": "function"}
        elif not delta.text:
            return b""
        return self._chunk(answer, {"tool_calls": [part]})

    def _chunk(
        self, answer: int, delta: dict[str, Any], reason: Finish | None = None, logprobs: Sequence[dict[str, Any]] = ()
    ) -> bytes:
        choice = {
            "index": answer,
            "delta": delta,
            "logprobs": {"content": list(logprobs), "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        chunk = {**self._head, "choices": [choice]}
        return event({**chunk, "usage": None} if self._with_usage else chunk)
