"""Bars with their numbers beside them. They begin at zero, unless they are pieces of a longer one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .keys import Key, draw_keys, keys_height
from .palette import Colour
from .sheet import Paper, Sheet, fitted, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_THICK = 14  # units of a bar
_GAP = 7  # units between a bar and its text
_NAMES = 0.36  # the part of the width that names take at most
_TICKS = 5


@dataclass(frozen=True)
class Part:
    """A part of a bar, in the unit of the axis."""

    value: float
    colour: Colour = Colour.BLUE


@dataclass(frozen=True)
class Bar:
    """A bar.

    label   its number with the unit
    start   where it begins, above 0 for a piece of a longer bar
    mark    a value that is marked on it
    """

    name: str
    parts: tuple[Part, ...]
    label: str
    start: float = 0.0
    mark: float | None = None

    @property
    def end(self) -> float:
        return self.start + sum(part.value for part in self.parts)

    @property
    def reach(self) -> float:
        """The largest value that is drawn."""
        return self.end if self.mark is None else max(self.end, self.mark)


def draw_bars(paper: Paper, bars: Sequence[Bar], unit: str, keys: Sequence[Key] = ()) -> Sheet:
    """The bars from top to bottom. unit: of the axis."""
    row = _THICK + (26 if paper.narrow else 10)
    keyed = keys_height(paper, keys)
    sheet = Sheet(paper, keyed + row * len(bars) + 40)
    draw_keys(sheet, paper, keys)
    names = 0.0 if paper.narrow else min(_NAMES * paper.width, max(text_width(bar.name) for bar in bars))
    left = names + _GAP if names else 4.0
    plot = paper.width - left - 8
    axes = sheet.axes(left, keyed, plot, row * len(bars))
    limit = _limit(bars, plot, not paper.narrow)
    _axis(axes, limit, unit, row * len(bars))
    for index, bar in enumerate(bars):
        middle = row * (index + 1) - _THICK / 2 - 4 if paper.narrow else row * (index + 0.5)
        _draw(axes, bar, middle)
        if paper.narrow:
            line, room = keyed + middle - 18, paper.width - left - 1 - _GAP - text_width(bar.label)
            sheet.text(left, line, fitted(bar.name, room), Colour.INK)
            sheet.text(paper.width - 1, line, bar.label, Colour.MUTED, align="right")
        else:
            sheet.text(names, keyed + middle, fitted(bar.name, names), align="right")
            sheet.text(left + bar.reach / limit * plot + _GAP, keyed + middle, bar.label, Colour.MUTED)
    return sheet


def _limit(bars: Sequence[Bar], plot: float, labelled: bool) -> float:
    """The value at the right end, so that each label fits behind its bar."""
    limit = max(bar.reach for bar in bars)
    for bar in bars if labelled else ():
        room = plot - _GAP - text_width(bar.label)
        limit = max(limit, bar.reach * plot / max(room, plot / 4))
    return limit if limit > 0 else 1.0


def _axis(axes: Axes, limit: float, unit: str, height: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, limit)
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.spines["left"].set_color(Colour.MUTED.value)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel(unit, loc="right", labelpad=1)


def _draw(axes: Axes, bar: Bar, middle: float) -> None:
    left = bar.start
    for part in bar.parts:
        axes.barh(middle, part.value, _THICK, left, color=part.colour.value, linewidth=0)
        left += part.value
    if bar.mark is not None:
        axes.plot([bar.mark] * 2, [middle - 10, middle + 10], color=Colour.INK.value, linewidth=2, clip_on=False)
