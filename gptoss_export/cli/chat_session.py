"""A conversation with an engine: messages so far, and answers that come piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import RunError
from ..harmony.messages import Conversation, Effort, Message
from ..harmony.parsing import AnswerParser, Piece
from ..harmony.rendering import prompt_tokens
from ..harmony.vocabulary import HarmonyTokenizer
from ..runtime.engine import Engine
from ..runtime.request_handle import RequestHandle
from ..runtime.sampling_params import SamplingParams


@dataclass(frozen=True)
class ChatSettings:
    """What a conversation is asked with.

    date            of today, YYYY-MM-DD
    max_new_tokens  most tokens of an answer; None: as many as the context has room for
    """

    sampling: SamplingParams
    effort: Effort = "medium"
    instructions: str = ""
    date: str | None = None
    max_new_tokens: int | None = None


class ChatSession:
    """Asks an engine. `settings` may change between questions; `messages` are those of the next prompt."""

    def __init__(self, engine: Engine, tokenizer: HarmonyTokenizer, settings: ChatSettings) -> None:
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.messages: tuple[Message, ...] = ()
        runner = engine.runner
        self.context = runner.slots.max_context
        self._stop_tokens = sorted({*tokenizer.stop_tokens, *runner.manifest.stop_tokens})

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages = ()

    def set_effort(self, effort: Effort) -> None:
        """How long the model reasons from the next question on."""
        self.settings = replace(self.settings, effort=effort)

    def ask(self, text: str) -> Answer:
        """Ask for the answer to a user's message. The conversation has both when the answer has ended.

        Raises UsageError for text that the tokenizer cannot take, RunError where the conversation has no room for an
        answer. The conversation stays as it is then.
        """
        asked = (*self.messages, Message("user", text))
        prompt = self._prompt(asked)
        if len(prompt) >= self.context:
            raise RunError(self._no_room(asked, len(prompt)))
        handle = self.engine.submit(
            prompt, self.settings.max_new_tokens or self.context, self.settings.sampling, self._stop_tokens
        )
        return Answer(self, asked, handle)

    def to_json(self) -> dict[str, Any]:
        """The conversation for a file."""
        settings = self.settings
        return {
            "artifact": os.fsencode(self.engine.runner.folder).decode("utf-8", "replace"),
            "effort": settings.effort,
            "instructions": settings.instructions,
            "date": settings.date,
            "temperature": settings.sampling.temperature,
            "top_p": settings.sampling.top_p,
            "seed": settings.sampling.seed,
            "messages": [message_json(message) for message in self.messages],
        }

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        settings = self.settings
        conversation = Conversation(messages, settings.effort, settings.instructions, date=settings.date)
        return prompt_tokens(conversation, self.tokenizer)

    def _no_room(self, asked: tuple[Message, ...], count: int) -> str:
        expected = f"expected fewer than the {self.context} of the context ({self.engine.runner.slots.limit})"
        alone = len(self._prompt(asked[-1:]))
        if alone >= self.context:
            return f"the message: found {alone} tokens with the instructions, {expected}; shorten it"
        return f"the conversation: found {count} tokens with this message, {expected}; /reset begins a new one"


@dataclass
class Answer:
    """An answer that is being generated. Iterating gives its pieces as they come, once.

    finish  why it ended, as in `Generation`; None while it runs
    """

    session: ChatSession
    asked: tuple[Message, ...]
    handle: RequestHandle
    messages: list[Message] = field(default_factory=list)
    finish: str | None = None

    def cancel(self) -> None:
        """End it before the next token. What was generated stays. Can be called by a handler of signals."""
        self.handle.cancel()

    def __iter__(self) -> Iterator[Piece]:
        """Raises the error of a request that failed. The conversation stays as it was before the question then."""
        parser = AnswerParser(self.session.tokenizer)
        try:
            for token in self.handle:
                yield from parser.push(token.id)
            yield from parser.end()
        except BaseException:
            self.cancel()
            raise
        self.finish = self.handle.finish
        self.messages = [message for message in parser.messages if message.content or message.recipient]
        if self.messages or self.finish != "cancelled":  # a question that was taken back at once was not asked
            self.session.messages = (*self.asked, *self.messages)


def message_json(message: Message) -> dict[str, str]:
    """A message without the fields that it does not have."""
    fields = ("role", "channel", "recipient", "content_type", "content")
    return {name: value for name in fields if (value := getattr(message, name)) is not None}
