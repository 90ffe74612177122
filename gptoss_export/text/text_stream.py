"""Text of tokens that come one at a time."""

from __future__ import annotations

from .tokenizer import Text

REPLACEMENT = "\ufffd"  # what bytes decode to that are no character, or not yet
_LONGEST_WAIT = 8  # tokens that may end in a part of a character; a character has 4 bytes at most


class TextStream:
    """Decodes tokens one at a time. The parts are together what decoding all tokens at once gives.

    A token may hold a part of a character, and a decoder may treat the first token differently. So the last tokens are
    decoded again, a few of them, whatever the length of the text.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._context: list[int] = []  # tokens whose text was given away, as `_given`
        self._given = ""
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        if self._text.leaves_out(token):
            return ""
        self._waiting.append(token)
        text = self._text.decode(self._context + self._waiting)
        if not text.endswith(REPLACEMENT):
            return self._give(len(self._waiting), text)
        if len(self._waiting) < _LONGEST_WAIT:
            return ""
        for count in range(len(self._waiting) - 1, 0, -1):
            # A cut is safe where both sides, decoded alone, give the same text.
            before = self._text.decode(self._context + self._waiting[:count])
            if before + self._text.decode(self._waiting[count:]) == text:
                return self._give(count, before)
        return ""

    def end(self) -> str:
        """The rest of the text, after the last token."""
        return self._text.decode(self._context + self._waiting)[len(self._given) :]

    def _give(self, count: int, text: str) -> str:
        """Give away the first waiting tokens, with which the context decodes to `text`."""
        new = text[len(self._given) :]
        if new:
            self._context = self._waiting[:count]
            self._given = self._text.decode(self._context)
            self._waiting = self._waiting[count:]
        return new
