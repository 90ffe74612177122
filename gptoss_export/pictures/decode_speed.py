"""Tokens a second over the number of sequences, or over the context, beside what the floor allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .keys import Key, Shape, draw_keys, keys_height
from .page import Picture
from .palette import Colour
from .sheet import BROKEN, Paper, Sheet, annotate, make_picture, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..bench import Measurement

_PANELS = 6  # that are drawn; the table has all numbers
_POINTS = 3  # that a line needs; decode_floor.py has a bar for each
_LABEL_GAP = 6  # units between two labels of an axis
_RIGHT = 40  # units right of a plot, for the number of its last point
_KEYS = (Key("measured", Colour.BLUE), Key("what the floor allows", Colour.MUTED, Shape.BROKEN))


class _Point(NamedTuple):
    x: int
    measured: float
    floor: float


@dataclass(frozen=True)
class _Panel:
    """The points of one plot, in ascending order."""

    title: str
    points: tuple[_Point, ...]


def speed_over_width(measurements: Sequence[Measurement]) -> Picture | None:
    """Over the sequences of a step, a plot for each context. None where too few numbers of
    sequences were measured."""
    panels = _panels(measurements, lambda row: row.context, lambda row: row.batch, "context {:,}")
    return _picture("speed-width", "over the sequences of a step", panels, "sequences", shared=True)


def speed_over_context(measurements: Sequence[Measurement]) -> Picture | None:
    """Over the context, a plot for each number of sequences. None where too few contexts were
    measured."""
    panels = _panels(measurements, lambda row: row.batch, lambda row: row.context, "sequences: {:,}")
    return _picture("speed-context", "over the context", panels, "context, tokens", shared=False)


def _panels(
    measurements: Sequence[Measurement],
    group: Callable[[Measurement], int],
    x: Callable[[Measurement], int],
    title: str,
) -> list[_Panel]:
    groups: dict[int, dict[int, _Point]] = {}
    for row in measurements:
        groups.setdefault(group(row), {})[x(row)] = _Point(x(row), row.decode_tok_s, row.batch / row.floor_s)
    return [
        _Panel(title.format(key), tuple(points[at] for at in sorted(points)))
        for key, points in groups.items()
        if len(points) >= _POINTS
    ]


def _picture(name: str, over: str, panels: list[_Panel], unit: str, shared: bool) -> Picture | None:
    """shared: whether all plots have one scale."""
    if not panels:
        return None
    shown = panels[:_PANELS]
    more = f"; the first {len(shown)} of {len(panels)}" if len(shown) < len(panels) else ""
    first, last = shown[0].points[0], shown[0].points[-1]
    return make_picture(
        name,
        f"Decode, tokens a second {over}{more}",
        f"{shown[0].title}: {first.measured:,.1f} tokens a second at {first.x:,} and {last.measured:,.1f} at "
        f"{last.x:,}; the floor allows {first.floor:,.1f} and {last.floor:,.1f}.",
        lambda paper: _draw(paper, shown, unit, shared),
    )


def _draw(paper: Paper, panels: Sequence[_Panel], unit: str, shared: bool) -> Sheet:
    columns = 1 if paper.narrow else min(len(panels), 2 if len(panels) == 4 else 3)
    rows = -(-len(panels) // columns)
    top = keys_height(paper, _KEYS)
    height = 210 if paper.narrow else (300 if columns == 1 else 240)
    limits = [1.08 * max(max(point.floor, point.measured) for point in panel.points) for panel in panels]
    left = 12 + text_width(f"{max(limits):,.0f}", small=True)
    sheet = Sheet(paper, top + rows * height)
    draw_keys(sheet, paper, _KEYS)
    width = paper.width / columns
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        x, y = column * width, top + row * height
        sheet.text(x + left, y + 10, panel.title, bold=True)
        axes = sheet.axes(x + left, y + 26, width - left - _RIGHT, height - 74)
        limit = max(limits) if shared else limits[index]
        _axes(axes, panel, limit, unit, width - left - _RIGHT)
        _lines(axes, panel, width - left - _RIGHT, height - 74, limit)
    return sheet


def _axes(axes: Axes, panel: _Panel, limit: float, unit: str, width: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    xs = [point.x for point in panel.points]
    axes.set_xscale("log", base=2)
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(0, limit)
    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_minor_locator(NullLocator())
    named = {float(value): label for value, label in _labels(xs, width)}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: named.get(value, "")))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit, loc="right", labelpad=2)


def _labels(xs: Sequence[int], width: float) -> list[tuple[int, str]]:
    """The numbers of the axis that have room for a label, the last one always."""
    span = math.log2(xs[-1] / xs[0])
    found: list[tuple[int, str]] = []
    free = math.inf
    for value in reversed(xs):
        text = f"{value:,}"
        at, half = math.log2(value / xs[0]) / span * width, text_width(text, small=True) / 2
        if at + half + _LABEL_GAP <= free:
            found.append((value, text))
            free = at - half
    return found


def _lines(axes: Axes, panel: _Panel, width: float, height: float, limit: float) -> None:
    """The two lines, and a number at each point that has room for one."""
    xs = [point.x for point in panel.points]
    floors, values = [point.floor for point in panel.points], [point.measured for point in panel.points]
    axes.plot(xs, floors, color=Colour.MUTED.value, linewidth=1.5, linestyle=BROKEN, clip_on=False)
    axes.plot(xs, values, "o-", color=Colour.BLUE.value, linewidth=2, markersize=5, clip_on=False)
    span = math.log2(xs[-1] / xs[0])
    free = -math.inf
    for point in reversed(panel.points):  # the last one matters most
        text = f"{point.measured:,.{0 if point.measured >= 100 else 1}f}"
        room = text_width(text, small=True)
        at = math.log2(point.x / xs[0]) / span * width
        below = point.measured / limit * height > 24  # where there is room above the axis
        left = min(at - 4 if below else max(at - room / 2, 0), width + _RIGHT - room)
        if free == -math.inf or left + room + 6 < free:
            free = left
            place = (left - at, -8 if below else 8)
            annotate(axes, text, (point.x, point.measured), place, Colour.BLUE, vertical="top" if below else "bottom")
