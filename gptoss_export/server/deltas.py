"""What new tokens add to an answer, in terms of clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..runtime.generation import Token

Kind = Literal["reasoning", "content", "call"]
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """A part of a message of the answer.

    message       index of the message in the answer
    kind          "reasoning", "content" (for the user), or "call" (arguments of a function)
    text          what the message is longer by
    begins, ends  whether it is the first part of its message, and the last
    cut           whether the message ends here since the answer may have no more tokens
    preamble      whether the message is content that the model writes before a call
    function      what a call is for
    tokens        those that begin in the text, where log probabilities are wanted
    """

    message: int
    kind: Kind
    text: str
    begins: bool = False
    ends: bool = False
    cut: bool = False
    preamble: bool = False
    function: str | None = None
    tokens: tuple[Token, ...] = ()


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same with one delta for parts of a message that follow each other, and none that adds nothing."""
    groups: list[list[Delta]] = []
    for delta in deltas:
        if not (delta.text or delta.tokens or delta.begins or delta.ends):
            continue
        if groups and groups[-1][0].message == delta.message and not delta.begins:
            groups[-1].append(delta)
        else:
            groups.append([delta])
    return [group[0] if len(group) == 1 else _one(group) for group in groups]


def _one(parts: list[Delta]) -> Delta:
    return replace(
        parts[0],
        text="".join(part.text for part in parts),
        ends=parts[-1].ends,
        cut=parts[-1].cut,
        tokens=tuple(token for part in parts for token in part.tokens),
    )
