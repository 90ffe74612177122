"""How near each case comes to its bound: the largest error and the rms, as shares of what they have to be within."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .keys import Key, Shape, draw_keys, keys_height
from .page import Picture
from .palette import Colour
from .sheet import BROKEN, Paper, Sheet, annotate, fitted, make_picture, style_points, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..verification.metric import Deviation
    from ..verification.report import Report, Row

_ROW = 20
_FARTHEST = 2.0  # the largest share that has a place; a larger one is written at the edge


class _Mark(NamedTuple):
    """A kind of point of a picture."""

    key: Key
    marker: str


_NO_TIE = _Mark(Key("without a near tie", Colour.BLUE, Shape.POINT), "o")
_TIE = _Mark(Key("with a near tie", Colour.PURPLE, Shape.HOLLOW), "o")
_BOUND = Key("the bound", Colour.INK, Shape.BROKEN)


@dataclass(frozen=True)
class _Point:
    """The shares of one deviation of one case."""

    mark: _Mark
    max: float
    rms: float


@dataclass(frozen=True)
class _Line:
    label: str
    passed: bool
    points: tuple[_Point, ...]


def length_picture(report: Report) -> Picture:
    """All cases of a report, one or more."""
    lines = [_Line(row.label, row.within_bounds, tuple(_points(row))) for row in report.rows]
    ties = any(row.tie is not None for row in report.rows)
    keys = [_NO_TIE.key, *([_TIE.key] if ties else []), _BOUND]
    failed = [row.label for row in report.rows if not row.within_bounds]
    outcome = f"{len(failed)} fail: {', '.join(failed)}." if failed else "All pass."
    return _picture("length", "Error of each case as a share of its bound", lines, keys, outcome)


def comparison_picture(report: Report) -> Picture:
    """Both artifacts, and their difference as a share of twice the bound. One case or more has a comparison."""
    first = _Mark(Key("the artifact", Colour.BLUE, Shape.POINT), "o")
    second = _Mark(Key("the other artifact", Colour.ORANGE, Shape.HOLLOW), "o")
    between = _Mark(Key("their difference, of twice the bound", Colour.TEAL, Shape.CROSS), "x")
    lines = []
    for row in report.rows:
        if (found := row.comparison) is not None:
            points = (
                _share(first, row.gated, row.bound),
                _share(second, found.gated, row.bound),
                _share(between, found.difference, row.bound.times(2.0)),
            )
            lines.append(_Line(row.label, found.passed, points))
    keys = [first.key, second.key, between.key, _BOUND]
    failed = [line.label for line in lines if not line.passed]
    outcome = f"The comparison fails at {', '.join(failed)}." if failed else "All comparisons pass."
    return _picture("comparison", "Both artifacts: error as a share of the bound", lines, keys, outcome)


def _points(row: Row) -> list[_Point]:
    every = row.near_ties == row.rows
    points = [_share(_TIE if every else _NO_TIE, row.gated, row.bound)]
    if row.tie is not None and row.tie_bound is not None:
        points.append(_share(_TIE, row.tie, row.tie_bound))
    return points


def _share(mark: _Mark, found: Deviation, bound: Deviation) -> _Point:
    return _Point(mark, _quotient(found.max, bound.max), _quotient(found.rms, bound.rms))


def _quotient(found: float, bound: float) -> float:
    """found / bound; infinite where it is no number, which passes no bound."""
    if math.isnan(found) or math.isnan(bound) or (bound == 0 and found > 0):
        return math.inf
    return found / bound if bound else 0.0


def _picture(name: str, title: str, lines: Sequence[_Line], keys: Sequence[Key], outcome: str) -> Picture:
    shares = [max(point.max, point.rms) for line in lines for point in line.points]
    largest = f"The largest share is {max(shares):.0%}." if math.isfinite(max(shares)) else "One is not a number."
    return make_picture(
        name,
        title,
        f"{len(lines)} cases. {outcome} {largest}",
        lambda paper: _draw(paper, lines, keys, min(max(shares), _FARTHEST)),
    )


def _draw(paper: Paper, lines: Sequence[_Line], keys: Sequence[Key], largest: float) -> Sheet:
    names = min(0.3 * paper.width, max(text_width(line.label) for line in lines))
    top, left, height = keys_height(paper, keys) + 22, names + 12, _ROW * len(lines)
    panels = 1 if paper.narrow else 2
    each = height + 66
    sheet = Sheet(paper, top + (each * 2 if paper.narrow else each) - 22)
    draw_keys(sheet, paper, keys)
    width = (paper.width - left - 14 - (panels - 1) * 26) / panels
    for index, what in enumerate(("largest error", "rms")):
        x = left + (0 if paper.narrow else index * (width + 26))
        y = top + (index * each if paper.narrow else 0)
        sheet.text(x, y - 12, what, bold=True)
        axes = sheet.axes(x, y, width, height)
        _axes(axes, max(1.15, 1.1 * largest), height)
        for number, line in enumerate(lines):
            middle = _ROW * (number + 0.5)
            for point in line.points:
                _plot(axes, point.mark, point.max if index == 0 else point.rms, middle)
            if index == 0 or paper.narrow:
                colour = Colour.INK if line.passed else Colour.RED
                sheet.text(names, y + middle, fitted(line.label, names), colour, align="right", bold=not line.passed)
    return sheet


def _axes(axes: Axes, limit: float, height: float) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axes.set_xlim(0, limit)
    axes.set_ylim(height, 0)
    axes.set_yticks([_ROW * (index + 0.5) for index in range(round(height / _ROW))], labels=[])
    axes.tick_params(length=0)
    axes.grid(axis="both")
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MultipleLocator(0.5 if limit > 1.5 else 0.25))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.axvline(1.0, color=Colour.INK.value, linewidth=1.5, linestyle=BROKEN)
    axes.set_xlabel("of the bound", loc="right", labelpad=1)


def _plot(axes: Axes, mark: _Mark, share: float, middle: float) -> None:
    """A point; at the edge, in red and with its number, where it has no place."""
    limit = axes.get_xlim()[1]
    if share <= limit:
        (points,) = axes.plot([share], [middle], mark.marker, clip_on=False)
        style_points(points, mark.key.colour if share <= 1 else Colour.RED, mark.key.shape == Shape.HOLLOW)
        return
    (points,) = axes.plot([limit], [middle], ">", clip_on=False)
    style_points(points, Colour.RED, mark.key.shape == Shape.HOLLOW)
    text = f"{share:,.{1 if share < 10 else 0}f} times" if math.isfinite(share) else "not a number"
    annotate(axes, text, (limit, middle), (-9, 0), Colour.RED, "right", "center")
