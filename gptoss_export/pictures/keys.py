"""What the colours and marks of a picture stand for, in a line above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .palette import Colour
from .sheet import Paper, Sheet, text_width

_LINE = 20.0  # units from one line of keys to the next
_TEXT = 16.0  # units from the mark of a key to its text
_BETWEEN = 18.0


class Shape(Enum):
    """How something is drawn: filled, as a line across, as a broken line, as a point, as a hollow point, as a cross."""

    FILLED = auto()
    ACROSS = auto()
    BROKEN = auto()
    POINT = auto()
    HOLLOW = auto()
    CROSS = auto()


@dataclass(frozen=True)
class Key:
    """What a colour and a shape stand for."""

    text: str
    colour: Colour
    shape: Shape = Shape.FILLED


def keys_height(paper: Paper, keys: Sequence[Key]) -> float:
    """Units that `draw_keys` takes."""
    lines = {line for line, _ in _places(paper, keys)}
    return _LINE * len(lines) + 6 if keys else 2.0


def draw_keys(sheet: Sheet, paper: Paper, keys: Sequence[Key], top: float = 0.0) -> None:
    """Draw the keys, so many units below the top of a sheet."""
    for key, (line, left) in zip(keys, _places(paper, keys), strict=True):
        y = top + _LINE * (line + 0.5)
        if key.shape == Shape.FILLED:
            sheet.line((left, y), (left + 10, y), key.colour, 10)
        elif key.shape == Shape.ACROSS:
            sheet.line((left + 5, y - 7), (left + 5, y + 7), key.colour, 2)
        elif key.shape == Shape.BROKEN:
            sheet.line((left, y), (left + 4, y), key.colour, 2)
            sheet.line((left + 7, y), (left + 11, y), key.colour, 2)
        else:
            sheet.point(left + 5, y, key.colour, key.shape == Shape.HOLLOW, "x" if key.shape == Shape.CROSS else "o")
        sheet.text(left + _TEXT, y, key.text, key.colour)


def _places(paper: Paper, keys: Sequence[Key]) -> list[tuple[int, float]]:
    """The line and the left edge of each key."""
    places, line, left = [], 0, 0.0
    for key in keys:
        width = _TEXT + text_width(key.text)
        if left and left + width > paper.width:
            line, left = line + 1, 0.0
        places.append((line, left))
        left += width + _BETWEEN
    return places
