"""What rank 0 tells the other ranks: the calls of an executor, as numbers.

A message is a sequence of 64-bit integers, little-endian, and bytes behind them:

    kind, number of parts, for each part: 0 and its count of integers, or 1 and its count of bytes
    the parts, each one filled up to a multiple of 8 bytes
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

Part: TypeAlias = "Sequence[int] | bytes"
_WORD = 8  # bytes


class Kind(IntEnum):
    """A call of an executor (runtime/executor.py), or what belongs to one. The parts that it has, in order."""

    SET_PAGES = 0  # numbers of layer kinds, slots, places, pages
    COPY_PAGES = 1  # from, to
    PREFILL = 2  # slot, start, ends, number of the outputs; tokens
    NEXT_OUTPUT = 3  # none: the next output of PREFILL
    PREFILL_SHARED = 4  # slot, start, ends and count of tokens of each part; tokens of all parts
    DECODE = 5  # slots; tokens; lengths
    SET_SAMPLING = 6  # JSON
    ALLOW = 7  # slots; their masks, one behind the other
    KEEP_OUTPUT = 8  # slot, and which of the last outputs
    CHOOSE_FIRST = 9  # choice; slots; lengths
    STEP = 10  # choice; slots; lengths
    KEPT_LOGITS = 11  # none: the logits of the last choice are wanted


class Message(NamedTuple):
    kind: Kind
    parts: list[array[int] | bytes]

    def numbers(self, index: int) -> list[int]:
        """The integers of a part."""
        part = self.parts[index]
        assert isinstance(part, array)
        return part.tolist()

    def data(self, index: int) -> bytes:
        """The bytes of a part."""
        part = self.parts[index]
        assert isinstance(part, bytes)
        return part


def encode(kind: Kind, *parts: Part) -> bytes:
    """A message as bytes."""
    head = array("q", [kind, len(parts)])
    body = b""
    for part in parts:
        data = part if isinstance(part, bytes) else array("q", part).tobytes()
        head.extend((1, len(data)) if isinstance(part, bytes) else (0, len(part)))
        body += data + bytes(-len(data) % _WORD)
    return head.tobytes() + body


def decode(data: bytes) -> Message:
    """The inverse of `encode`."""
    words = array("q")
    words.frombytes(data)
    count = words[1]
    at, parts = 2 + 2 * count, []
    for index in range(count):
        is_bytes, size = words[2 + 2 * index : 4 + 2 * index]
        length = -(-size // _WORD) if is_bytes else size
        found = words[at : at + length]
        parts.append(found.tobytes()[:size] if is_bytes else found)
        at += length
    return Message(Kind(words[0]), parts)
