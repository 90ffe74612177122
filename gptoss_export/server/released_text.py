"""Text of an answer that is given to the client, up to a stop string, with the log probabilities of its tokens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..runtime.generation import Token
from ..text.stop_strings import StopStrings


@dataclass(frozen=True)
class Released:
    """Text, and the tokens that begin in it."""

    text: str
    tokens: tuple[Token, ...] = ()


class ReleasedText:
    """Holds back what can be the beginning of a stop string.

    stopped  whether a stop string was found. What comes after it is dropped
    """

    def __init__(self, stops: StopStrings | None) -> None:
        self._stops = stops
        self._waiting = ""
        self._taken = self._given = 0  # characters
        self._tokens: deque[tuple[int, Token]] = deque()  # each with how many characters come before it
        self.stopped = False

    def token(self, token: Token) -> None:
        """A token of the text, before its text. Only for log probabilities."""
        self._tokens.append((self._taken, token))

    def push(self, text: str) -> Released:
        """What is certain now and was not before."""
        if self.stopped:
            return Released("")
        self._taken += len(text)
        text = self._waiting + text
        certain = len(text)
        if self._stops is not None:
            whole = self._stops.cut(text)
            self.stopped = len(whole) < len(text)
            certain = len(whole) if self.stopped else self._stops.certain(text)
        return self._release(text, certain)

    def end(self) -> Released:
        """The rest, after the last text."""
        return Released("") if self.stopped else self._release(self._waiting, len(self._waiting))

    def _release(self, text: str, certain: int) -> Released:
        self._waiting = text[certain:]
        self._given += certain
        released = []
        while self._tokens and (self._tokens[0][0] < self._given or (not self.stopped and not self._waiting)):
            released.append(self._tokens.popleft()[1])
        return Released(text[:certain], tuple(released))
