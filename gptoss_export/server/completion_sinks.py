"""Completions of plain text as OpenAI's API has them: an object, or chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtime.generation import Token
from .chat_sinks import Completion, usage_json
from .deltas import Delta, Finish
from .errors import ApiError
from .logprobs import finite
from .sinks import Usage
from .sse import DONE, Reply, error_event, event

_KIND = "text_completion"


@dataclass
class _Written:
    """What was written of an answer."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0  # characters
    reason: Finish | None = None


class _Completions:
    """What both kinds of responses share. prompts: the text of the prompt of each answer where it is repeated."""

    def __init__(self, completion: Completion, prompts: Sequence[str], reply: Reply) -> None:
        self._completion, self._reply = completion, reply
        self._written = [_Written(offset=len(prompt)) for prompt in prompts]

    def _logprobs(self, answer: int, delta: Delta) -> dict[str, Any] | None:
        """Those of a delta's tokens, in lists. A token that holds a part of a character has the text of its bytes."""
        if self._completion.top_logprobs is None:
            return None
        names, written = self._completion.model.token_bytes, self._written[answer]

        def name(token: int) -> str:
            return names.of(token).decode("utf-8", "replace")

        tops = [self._top(token) for token in delta.tokens]
        lists: dict[str, Any] = {
            "tokens": [name(token.id) for token in delta.tokens],
            "token_logprobs": [finite(token.logprob) for token in delta.tokens],
            "top_logprobs": [{name(other): value for other, value in top} for top in tops],
            "text_offset": [],
        }
        for text in lists["tokens"]:
            lists["text_offset"].append(written.offset)
            written.offset += len(text)
        return lists

    def _top(self, token: Token) -> list[tuple[int, float]]:
        most = self._completion.top_logprobs or 0
        return [(other, finite(logprob)) for other, logprob in token.top_logprobs[:most]]


class WholeCompletion(_Completions):
    """All answers in one object."""

    def __init__(self, completion: Completion, prompts: Sequence[str], reply: Reply) -> None:
        super().__init__(completion, prompts, reply)
        for written, prompt in zip(self._written, prompts, strict=True):
            written.texts.append(prompt)

    async def deltas(self, answer: int, deltas: Sequence[Delta]) -> None:
        """Keeps them."""
        for delta in deltas:
            self._written[answer].texts.append(delta.text)
            if (lists := self._logprobs(answer, delta)) is not None:
                self._written[answer].logprobs.append(lists)

    async def finish(self, answer: int, reason: Finish) -> None:
        """Keeps it."""
        self._written[answer].reason = reason

    async def close(self, usage: Usage) -> None:
        """Sends the object."""
        choices = [self._choice(index, written) for index, written in enumerate(self._written)]
        await self._reply.json({**self._completion.head(_KIND), "choices": choices, "usage": usage_json(usage)})

    async def fail(self, error: ApiError) -> None:
        """Never needed: the response begins with its end."""
        raise error

    def _choice(self, index: int, written: _Written) -> dict[str, Any]:
        logprobs = None
        if self._completion.top_logprobs is not None:
            names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            logprobs = {name: [entry for part in written.logprobs for entry in part[name]] for name in names}
        text = "".join(written.texts)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": written.reason}


class CompletionChunks(_Completions):
    """The answers in chunks."""

    def __init__(self, completion: Completion, prompts: Sequence[str], reply: Reply, usage: bool) -> None:
        super().__init__(completion, prompts, reply)
        self._prompts, self._with_usage = list(prompts), usage

    async def deltas(self, answer: int, deltas: Sequence[Delta]) -> None:
        """Sends a chunk for each."""
        chunks = [self._chunk(answer, delta.text, logprobs=self._logprobs(answer, delta)) for delta in deltas]
        await self._reply.events(self._begin(answer) + b"".join(chunks))

    async def finish(self, answer: int, reason: Finish) -> None:
        """Sends the last chunk of an answer."""
        await self._reply.events(self._begin(answer) + self._chunk(answer, "", reason))

    async def close(self, usage: Usage) -> None:
        """Ends the stream."""
        events = b""
        if self._with_usage:
            events = event({**self._completion.head(_KIND), "choices": [], "usage": usage_json(usage)})
        await self._reply.end(events + DONE)

    async def fail(self, error: ApiError) -> None:
        """Ends the stream with an error."""
        await self._reply.end(error_event(error) + DONE)

    def _begin(self, answer: int) -> bytes:
        """The prompt, where it is repeated."""
        prompt, self._prompts[answer] = self._prompts[answer], ""
        return self._chunk(answer, prompt) if prompt else b""

    def _chunk(
        self, answer: int, text: str, reason: Finish | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"text": text, "index": answer, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._completion.head(_KIND), "choices": [choice]}
        return event({**chunk, "usage": None} if self._with_usage else chunk)
