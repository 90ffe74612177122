"""Texts at which an answer ends: found in its tokens, and cut off from its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from .text_stream import REPLACEMENT
from .tokenizer import Text

_MORE = 8  # tokens before those that can hold a stop string: a token may hold a part of a character


@dataclass(frozen=True)
class StopStrings:
    """`stops` are looked for in what an answer's tokens decode to."""

    text: Text
    stops: tuple[str, ...]

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether an answer ends with its last token. A token that is shown has at least one byte of the text, so that
        few tokens have to be decoded, whatever the length of the answer."""
        count = max(len(stop.encode()) for stop in self.stops) + _MORE
        shown = (token for token in reversed(tokens) if not self.text.leaves_out(token))
        last = [*islice(shown, count)][::-1]
        # A part of a character reads as this at the beginning and, until the rest of it has come, at the end.
        return self._found(self.text.decode(last).strip(REPLACEMENT)) is not None

    def cut(self, text: str) -> str:
        """A text up to the first stop string."""
        found = self._found(text)
        return text if found is None else text[:found]

    def certain(self, text: str) -> int:
        """How many characters of a text that grows cannot be the beginning of a stop string."""
        longest = max(map(len, self.stops)) - 1
        for kept in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-kept:]) for stop in self.stops):
                return len(text) - kept
        return len(text)

    def _found(self, text: str) -> int | None:
        places = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return min(places, default=None)
