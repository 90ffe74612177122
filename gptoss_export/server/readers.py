"""What the tokens of an answer say: a conversation's answer with its messages, or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ..harmony.parsing import AnswerParser, Piece
from ..harmony.vocabulary import HarmonyTokenizer
from ..runtime.generation import Token
from ..text.stop_strings import StopStrings
from ..text.text_stream import TextStream
from .deltas import Delta, Finish, merged
from .released_text import ReleasedText
from .turns import function_of


class Reader(Protocol):
    """Reads the tokens of one answer.

    stopped           whether a stop string was found: no later token counts
    count, reasoning  tokens so far, and those of them that are reasoning
    """

    @property
    def stopped(self) -> bool: ...

    @property
    def count(self) -> int: ...

    @property
    def reasoning(self) -> int: ...

    def push(self, tokens: Sequence[Token]) -> list[Delta]:
        """The next tokens."""

    def end(self, cut: bool) -> list[Delta]:
        """No token comes any more: the rest of what was held back. cut: the answer may have no more tokens."""

    def finish(self, engine: str) -> Finish:
        """Why the answer ended, as OpenAI's API says it. `engine` is what the engine says."""


class ConversationReader:
    """Reads an answer in the chat format.

    stops      end the answer where they are in content, not in reasoning or calls
    logprobs   whether deltas of content have their tokens
    one_value  whether all content together is one JSON value, so that what the model writes before a call is not
               content but reasoning
    """

    def __init__(
        self, tokenizer: HarmonyTokenizer, stops: tuple[str, ...], logprobs: bool, one_value: bool = False
    ) -> None:
        self._parser = AnswerParser(tokenizer)
        self._stops = StopStrings(tokenizer.text, stops) if stops else None
        self._logprobs, self._one_value = logprobs, one_value
        self._content = ReleasedText(None)  # of the message that is open
        self._called = False
        self._open: Piece | None = None  # the last piece of the message whose body is open
        self._count = self._reasoning = 0

    @property
    def stopped(self) -> bool:
        return self._content.stopped

    @property
    def count(self) -> int:
        return self._count

    @property
    def reasoning(self) -> int:
        return self._reasoning

    def push(self, tokens: Sequence[Token]) -> list[Delta]:
        """The next tokens."""
        deltas: list[Delta] = []
        for token in tokens:
            if self.stopped:
                break
            self._count += 1
            deltas += self._token(token)
        return merged(deltas)

    def end(self, cut: bool) -> list[Delta]:
        """No token comes any more: the rest of what was held back."""
        rest = [] if self.stopped else merged(self._deltas(self._parser.end()))
        return [replace(delta, cut=cut and delta.ends) for delta in rest]

    def finish(self, engine: str) -> Finish:
        """Why the answer ended."""
        if self.stopped:
            return "stop"
        if engine != "stop":
            return "length"
        return "tool_calls" if self._called else "stop"

    def _token(self, token: Token) -> list[Delta]:
        pieces = self._parser.push(token.id)
        for piece in pieces:
            self._open = None if piece.ends else piece
        opened = self._open
        # The token that begins a body is none of its text, and neither is the one that ends it.
        if opened is None or (pieces and pieces[-1].begins):
            return self._deltas(pieces)
        if opened.channel == "analysis" and opened.recipient is None:
            self._reasoning += 1
        elif self._logprobs and self._is_content(opened.channel, opened.recipient):
            self._content.token(token)
            if not pieces:  # a part of a character
                pieces = [replace(opened, text="", begins=False)]
        return self._deltas(pieces)

    def _is_content(self, channel: str, recipient: str | None) -> bool:
        if channel == "analysis" or function_of(recipient) is not None:
            return False
        return channel != "commentary" or not self._one_value

    def _deltas(self, pieces: Sequence[Piece]) -> list[Delta]:
        deltas = []
        for piece in pieces:
            if self.stopped:
                break
            function = function_of(piece.recipient)
            if self._is_content(piece.channel, piece.recipient):
                deltas += self._of_content(piece)
            elif function is not None:
                self._called = self._called or piece.ends
                deltas.append(Delta(piece.message, "call", piece.text, piece.begins, piece.ends, function=function))
            else:
                deltas.append(Delta(piece.message, "reasoning", piece.text, piece.begins, piece.ends))
        return deltas

    def _of_content(self, piece: Piece) -> list[Delta]:
        if piece.begins:
            self._content = ReleasedText(self._stops)
        preamble = piece.channel == "commentary"
        released = self._content.push(piece.text)
        ends = piece.ends or self.stopped
        first = Delta(piece.message, "content", released.text, piece.begins, preamble=preamble, tokens=released.tokens)
        deltas = [first]
        if ends:
            rest = self._content.end()
            last = Delta(piece.message, "content", rest.text, ends=True, preamble=preamble, tokens=rest.tokens)
            deltas.append(last)
        return deltas


class PlainReader:
    """Reads text that continues a prompt. Special tokens are left out of it."""

    def __init__(self, tokenizer: HarmonyTokenizer, stops: tuple[str, ...], logprobs: bool) -> None:
        self._text = tokenizer.text
        self._stream = TextStream(tokenizer.text)
        self._released = ReleasedText(StopStrings(tokenizer.text, stops) if stops else None)
        self._logprobs = logprobs
        self._count = 0

    @property
    def stopped(self) -> bool:
        return self._released.stopped

    @property
    def count(self) -> int:
        return self._count

    @property
    def reasoning(self) -> int:
        return 0

    def push(self, tokens: Sequence[Token]) -> list[Delta]:
        """The next tokens."""
        deltas = []
        for token in tokens:
            if self.stopped:
                break
            self._count += 1
            if self._logprobs and not self._text.leaves_out(token.id):
                self._released.token(token)
            released = self._released.push(self._stream.push(token.id))
            deltas.append(Delta(0, "content", released.text, tokens=released.tokens))
        return merged(deltas)

    def end(self, cut: bool) -> list[Delta]:
        """No token comes any more: the rest of what was held back."""
        if self.stopped:
            return []
        last = self._released.push(self._stream.end())
        rest = self._released.end()
        return merged(Delta(0, "content", part.text, tokens=part.tokens) for part in (last, rest))

    def finish(self, engine: str) -> Finish:
        """Why the answer ended."""
        return "stop" if self.stopped or engine == "stop" else "length"
