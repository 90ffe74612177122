"""Answers as text on stdout: reasoning dimmed, and nothing that steers a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..harmony.messages import is_call
from ..harmony.parsing import Piece
from ..shown_text import plain
from .chat_session import Answer
from .plain import say

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_LABELS = {"reasoning": "[reasoning]", "answer": "[answer]"}


@dataclass(frozen=True)
class Style:
    """How answers look.

    terminal      whether stdout is one: control characters are written out
    conversation  whether somebody types the messages: notes and empty lines stand between answers
    colour        whether reasoning is dimmed; without it, labels say what is what
    reasoning     whether it is shown
    """

    terminal: bool
    conversation: bool
    colour: bool
    reasoning: bool

    @classmethod
    def of_stdout(cls, conversation: bool, reasoning: bool | None) -> Style:
        """That of this process. Reasoning is shown in a conversation, unless it is asked for or against."""
        shown = conversation if reasoning is None else reasoning
        return cls(sys.stdout.isatty(), conversation, conversation and has_colour(), shown)


def is_dumb() -> bool:
    """Whether the terminal can do nothing but show text."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


def has_colour() -> bool:
    """Whether the user and the terminal take escape sequences (no-color.org)."""
    return not os.environ.get("NO_COLOR") and not is_dumb()


class TextPrinter:
    """Prints an answer while it is generated."""

    def __init__(self, style: Style, write: Callable[[str], object] | None = None) -> None:
        self._style = style
        self._write = write or sys.stdout.write
        self._shown: int | None = None  # the message whose text was written last
        self._kind = ""
        self._at_start = True  # of a line

    def piece(self, piece: Piece) -> None:
        """A part of the answer."""
        kind = _kind(piece)
        if not piece.text or (kind == "reasoning" and not self._style.reasoning):
            return
        if piece.message != self._shown:
            self._begin(piece, kind)
        text = plain(piece.text) if self._style.terminal else piece.text
        self._at_start = text.endswith("\n")
        self._write(f"{_DIM}{text}{_RESET}" if kind == "reasoning" and self._style.colour else text)
        sys.stdout.flush()

    def end(self, answer: Answer) -> None:
        """The answer is complete, or was cut off: then a note says why."""
        self._end_line()
        if self._shown is None and not self._style.conversation:
            self._write("\n")  # each question has its line, also where the answer is empty
        for note in _notes(answer):
            say(f"[{note}]", err=not self._style.conversation)
        if self._style.conversation:
            self._write("\n")
        sys.stdout.flush()
        self._shown, self._kind, self._at_start = None, "", True

    def _begin(self, piece: Piece, kind: str) -> None:
        """The text of another message comes: an empty line, and what it is where its look does not say so."""
        between = self._shown is not None
        self._end_line()
        if between and (self._style.reasoning or kind == "call"):
            self._write("\n")
        if kind == "call":
            self._write(f"[call of {plain(piece.recipient or '')}]\n")
        elif self._style.reasoning and not self._style.colour and kind != self._kind:
            self._write(f"{_LABELS[kind]}\n")
        self._shown, self._kind = piece.message, kind

    def _end_line(self) -> None:
        if not self._at_start:
            self._write("\n")
            self._at_start = True


def _kind(piece: Piece) -> str:
    if is_call(piece.recipient):
        return "call"
    return "reasoning" if piece.channel == "analysis" else "answer"


def _notes(answer: Answer) -> list[str]:
    """What a user should know of how an answer ended."""
    session = answer.session
    notes = []
    if any(message.is_call for message in answer.messages):
        notes.append("a chat has no tools: the call was not run")
    if answer.finish == "cancelled":
        notes.append("stopped")
    elif answer.finish == "length":
        notes.append(f"cut off after {len(answer.handle.tokens)} tokens (--max-new-tokens)")
    elif answer.finish == "context":
        notes.append(f"cut off: the context of {session.context} tokens is full; /reset begins a new conversation")
    return notes
