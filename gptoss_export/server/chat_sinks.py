"""Chat completions as OpenAI's API has them: an object, or chunks of a stream."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .completion_facts import CompletionFacts, usage_json
from .completion_stream import CompletionStream
from .deltas import Delta, Finish
from .logprobs import logprobs_json
from .sinks import Usage, WholeSink
from .sse import Reply

_GAP = "\n\n"  # between messages of one kind, which clients see as one text


def _logprobs_of(facts: CompletionFacts, delta: Delta) -> list[dict[str, Any]]:
    """Those of the tokens of a delta, where they are wanted."""
    if facts.top_logprobs is None:
        return []
    return logprobs_json(delta.tokens, facts.model.token_bytes, facts.top_logprobs)


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


class WholeChat(WholeSink):
    """A chat completion in one object."""

    def __init__(self, facts: CompletionFacts, answer_count: int, reply: Reply) -> None:
        self._facts, self._reply = facts, reply
        self._joined = [_Joined() for _ in range(answer_count)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(answer_count)]
        self._reasons: dict[int, Finish] = {}

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Keeps them."""
        for delta in deltas:
            if delta.kind == "call":
                self._joined[index].call(delta)
            else:
                self._joined[index].text(delta)
            self._logprobs[index] += _logprobs_of(self._facts, delta)

    async def finish(self, index: int, reason: Finish) -> None:
        """Keeps it."""
        self._reasons[index] = reason

    async def close(self, usage: Usage) -> None:
        """Sends the object."""
        choices = [self._choice(index) for index in range(len(self._joined))]
        head = self._facts.head("chat.completion")
        await self._reply.json({**head, "choices": choices, "usage": usage_json(usage)})

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
        wanted = self._facts.top_logprobs is not None
        logprobs = {"content": self._logprobs[index], "refusal": None} if wanted else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._reasons[index]}


class ChatChunks(CompletionStream):
    """A chat completion in chunks."""

    def __init__(self, facts: CompletionFacts, answer_count: int, reply: Reply, with_usage: bool) -> None:
        super().__init__(facts, "chat.completion.chunk", reply, with_usage)
        self._facts = facts
        self._joined = [_Joined() for _ in range(answer_count)]
        self._begun: set[int] = set()

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Sends a chunk for each."""
        await self._reply.events(self._begin(index) + b"".join(self._delta(index, delta) for delta in deltas))

    async def finish(self, index: int, reason: Finish) -> None:
        """Sends the last chunk of an answer."""
        await self._reply.events(self._begin(index) + self._chunk(index, {}, reason))

    def _begin(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        return self._chunk(index, {"role": "assistant", "content": ""})

    def _delta(self, index: int, delta: Delta) -> bytes:
        joined = self._joined[index]
        logprobs = _logprobs_of(self._facts, delta)
        if delta.kind == "call":
            return self._call(index, delta)
        text = joined.text(delta)
        if not text and not logprobs:
            return b""
        if delta.kind == "reasoning":
            return self._chunk(index, {"reasoning_content": text, "reasoning": text})
        return self._chunk(index, {"content": text}, logprobs=logprobs)

    def _call(self, index: int, delta: Delta) -> bytes:
        joined = self._joined[index]
        call = joined.call(delta)
        function: dict[str, Any] = {"arguments": delta.text}
        part: dict[str, Any] = {"index": len(joined.calls) - 1, "function": function}
        if delta.begins:
            function["name"] = delta.function
            part |= {"id": call["id"], "type": "function"}
        elif not delta.text:
            return b""
        return self._chunk(index, {"tool_calls": [part]})

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: Finish | None = None, logprobs: Sequence[dict[str, Any]] = ()
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": list(logprobs), "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        return self._chunk_of(choice)
