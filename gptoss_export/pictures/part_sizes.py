"""The sizes of the parts that a table of the artifact's target lists, such as engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shown_text import size
from .amounts import byte_unit
from .bars import Bar, Part, draw_bars
from .page import Picture
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from .page import PageTable

_COLUMN = "bytes"
_SHOWN = 20  # parts with a bar of their own


def sizes_picture(table: PageTable, name: str) -> Picture | None:
    """The column `bytes` of a table, the largest first; None where there is none. name: of the picture."""
    if _COLUMN not in table.headings or not table.rows:
        return None
    column = table.headings.index(_COLUMN)
    texts = [[str(cell) for cell in row] for row in table.rows]
    parts = sorted(((int(row[column]), _label(row, column)) for row in texts), reverse=True)
    shown = parts if len(parts) <= _SHOWN + 1 else parts[:_SHOWN]
    rest = parts[len(shown) :]
    unit, scale = byte_unit(parts[0][0])
    bars = [Bar(label, (Part(count / scale),), size(count)) for count, label in shown]
    if rest:
        bars.append(Bar(f"{len(rest)} others", (), f"{size(sum(count for count, _ in rest))} in all"))

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, unit)

    total = sum(count for count, _ in parts)
    return make_picture(
        name,
        f"{table.title}, {size(total)} in all",
        f"{len(parts)} parts. The largest is {parts[0][1]}: {size(parts[0][0])}.",
        draw,
    )


def _label(row: list[str], column: int) -> str:
    """What the part is, by the cells before its size."""
    return ", ".join(row[:column])
