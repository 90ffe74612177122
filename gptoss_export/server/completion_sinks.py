"""Completions of plain text as OpenAI's API has them: an object, or chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .completion_facts import CompletionFacts, usage_json
from .completion_logprobs import LISTS, CompletionLogprobs
from .completion_stream import CompletionStream
from .deltas import Delta, Finish
from .sinks import Usage, WholeSink
from .sse import Reply

_KIND = "text_completion"


def _logprobs(facts: CompletionFacts) -> CompletionLogprobs | None:
    """Those of one answer, where they are wanted."""
    return None if facts.top_logprobs is None else CompletionLogprobs(facts.model.token_bytes, facts.top_logprobs)


@dataclass
class _Written:
    """What was written of an answer."""

    texts: list[str]
    logprobs: CompletionLogprobs | None
    lists: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in LISTS})
    reason: Finish | None = None


class WholeCompletion(WholeSink):
    """All answers in one object. beginnings: the text that each of them begins with."""

    def __init__(self, facts: CompletionFacts, beginnings: Sequence[str], reply: Reply) -> None:
        self._facts, self._reply = facts, reply
        self._written = [_Written([beginning], _logprobs(facts)) for beginning in beginnings]

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Keeps them."""
        written = self._written[index]
        for delta in deltas:
            written.texts.append(delta.text)
            if written.logprobs is not None:
                for name, entries in written.logprobs.lists(delta.tokens).items():
                    written.lists[name] += entries

    async def finish(self, index: int, reason: Finish) -> None:
        """Keeps it."""
        self._written[index].reason = reason

    async def close(self, usage: Usage) -> None:
        """Sends the object."""
        choices = [
            {
                "text": "".join(written.texts),
                "index": index,
                "logprobs": None if written.logprobs is None else written.lists,
                "finish_reason": written.reason,
            }
            for index, written in enumerate(self._written)
        ]
        await self._reply.json({**self._facts.head(_KIND), "choices": choices, "usage": usage_json(usage)})


class CompletionChunks(CompletionStream):
    """The answers in chunks. beginnings: the text that each of them begins with."""

    def __init__(self, facts: CompletionFacts, beginnings: Sequence[str], reply: Reply, with_usage: bool) -> None:
        super().__init__(facts, _KIND, reply, with_usage)
        self._beginnings = list(beginnings)
        self._logprobs = [_logprobs(facts) for _ in beginnings]

    async def deltas(self, index: int, deltas: Sequence[Delta]) -> None:
        """Sends a chunk for each."""
        logprobs = self._logprobs[index]
        chunks = [
            self._chunk(index, delta.text, logprobs=None if logprobs is None else logprobs.lists(delta.tokens))
            for delta in deltas
        ]
        await self._reply.events(self._begin(index) + b"".join(chunks))

    async def finish(self, index: int, reason: Finish) -> None:
        """Sends the last chunk of an answer."""
        await self._reply.events(self._begin(index) + self._chunk(index, "", reason))

    def _begin(self, index: int) -> bytes:
        """What the answer begins with, once."""
        beginning, self._beginnings[index] = self._beginnings[index], ""
        return self._chunk(index, beginning) if beginning else b""

    def _chunk(
        self, index: int, text: str, reason: Finish | None = None, logprobs: dict[str, list[Any]] | None = None
    ) -> bytes:
        return self._chunk_of({"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason})
