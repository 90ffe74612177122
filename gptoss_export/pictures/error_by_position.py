"""The error at each position of a case, and the bounds: the largest error of a position, and its rms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .keys import Key, Shape, draw_keys, keys_height
from .log_axis import LogRange, log_range, log_text
from .page import Picture
from .palette import Colour
from .sheet import BROKEN, Paper, Sheet, annotate, make_picture, style_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..verification.metric import Deviation
    from ..verification.report import Row, Span

_LEFT, _RIGHT = 52, 14


class _Kind(NamedTuple):
    """Spans that are drawn alike."""

    key: Key
    near_tie: bool
    decoded: bool


_KINDS = (
    _Kind(Key("prefill", Colour.BLUE, Shape.POINT), False, False),
    _Kind(Key("decode", Colour.BLUE, Shape.HOLLOW), False, True),
    _Kind(Key("prefill, near tie", Colour.PURPLE, Shape.POINT), True, False),
    _Kind(Key("decode, near tie", Colour.PURPLE, Shape.HOLLOW), True, True),
)
_OTHER = Key("the other artifact", Colour.ORANGE, Shape.CROSS)
_BOUND = Key("bound", Colour.INK, Shape.BROKEN)


def position_picture(row: Row, index: int, oracle: str) -> Picture:
    """The spans of a case, one or more. index: of the case in its report; oracle: its name."""
    present = [kind for kind in _KINDS if _of(row, kind)]
    own = Key(f"{oracle} itself in the artifact's dtype", Colour.GREY, Shape.POINT)
    keys = [kind.key for kind in present]
    keys += [own] if any(span.oracle is not None for span in row.spans) else []
    keys += [_OTHER] if any(span.other is not None for span in row.spans) else []
    keys.append(_BOUND)
    worst = max(row.spans, key=lambda span: math.inf if math.isnan(span.error.max) else span.error.max)
    where = str(worst.first) if worst.first == worst.last else f"{worst.first} to {worst.last}"
    with_or_without = "with" if row.near_ties == row.rows else "without"
    return make_picture(
        f"position-{index}",
        f"Error by position, prompt of {row.label} tokens",
        f"{row.rows} positions from {row.spans[0].first} to {max(span.last for span in row.spans)}. The largest error "
        f"is {worst.error.max:.1e}, at {where}. The bound is {row.bound.max:.1e} {with_or_without} a near tie"
        + ("." if row.tie_bound is None else f" and {row.tie_bound.max:.1e} with one."),
        lambda paper: _draw(paper, row, keys),
    )


def _of(row: Row, kind: _Kind) -> list[Span]:
    return [span for span in row.spans if (span.near_tie, span.decoded) == (kind.near_tie, kind.decoded)]


def _draw(paper: Paper, row: Row, keys: Sequence[Key]) -> Sheet:
    top, height = keys_height(paper, keys) + 20, 170 if paper.narrow else 190
    sheet = Sheet(paper, top + 2 * (height + 48))
    draw_keys(sheet, paper, keys)
    for index, name in enumerate(("max", "rms")):
        y = top + index * (height + 48)
        title = "largest error of a position" if name == "max" else "rms; its bound is for all together"
        sheet.text(0, y - 10, title, bold=True)
        axes = sheet.axes(_LEFT, y, paper.width - _LEFT - _RIGHT, height)
        _plot(axes, row, name)
        if index == 1:
            axes.set_xlabel("position", loc="right", labelpad=2)
    return sheet


def _plot(axes: Axes, row: Row, name: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    def value(deviation: Deviation) -> float:
        return float(deviation.max if name == "max" else deviation.rms)

    shown = log_range(map(value, _deviations(row)))
    first, last = row.spans[0].first, max(span.last for span in row.spans)
    beside = 0.5 + 0.01 * (last - first)
    axes.set_xlim(first - beside, last + beside)
    axes.set_yscale("log")
    axes.set_ylim(*shown)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator(shown.ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([log_text(tick) for tick in shown.ticks]))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:,.0f}"))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    own = [(span, span.oracle) for span in row.spans if span.oracle is not None]
    other = [(span, span.other) for span in row.spans if span.other is not None]
    _points(axes, [(_middle(span), value(found)) for span, found in own], shown, Colour.GREY, size=3)
    _points(axes, [(_middle(span), value(found)) for span, found in other], shown, Colour.ORANGE, marker="x")
    for kind in _KINDS:
        limit = row.tie_bound if kind.near_tie and row.tie_bound is not None else row.bound
        found = [(_middle(span), value(span.error)) for span in _of(row, kind)]
        above = [(at, error) for at, error in found if name == "max" and error > limit.max]
        within = [point for point in found if point not in above]
        _points(axes, within, shown, kind.key.colour, hollow=kind.decoded)
        _points(axes, above, shown, Colour.RED, hollow=kind.decoded)
    if bad := [span for span in row.spans if math.isnan(value(span.error))]:
        at = _middle(bad[0])
        if at > (first + last) / 2:
            annotate(axes, "not a number", (at, shown.high), (-8, 2), Colour.RED, "right", "bottom")
        else:
            annotate(axes, "not a number", (at, shown.high), (0, 7), Colour.RED, "left", "bottom")
    _bounds(axes, row, value(row.bound), None if row.tie_bound is None else value(row.tie_bound))


def _deviations(row: Row) -> Iterator[Deviation]:
    for span in row.spans:
        yield from (found for found in (span.error, span.oracle, span.other) if found is not None)
    yield row.bound
    if row.tie_bound is not None:
        yield row.tie_bound


def _middle(span: Span) -> float:
    return (span.first + span.last) / 2


def _points(
    axes: Axes,
    found: Sequence[tuple[float, float]],
    shown: LogRange,
    colour: Colour,
    *,
    hollow: bool = False,
    marker: str = "o",
    size: float = 5,
) -> None:
    """Points; a 0 lies at the lower end, and what is no number is a red mark at the upper end."""
    good = [(at, shown.clipped(value)) for at, value in found if not math.isnan(value)]
    bad = [at for at, value in found if math.isnan(value)]
    if good:
        (points,) = axes.plot(*zip(*good, strict=True), marker, clip_on=False)
        style_points(points, colour, hollow)
        points.set(markersize=size, markeredgewidth=1)
    if bad:
        (points,) = axes.plot(bad, [shown.high] * len(bad), "v", clip_on=False)
        style_points(points, Colour.RED)


def _bounds(axes: Axes, row: Row, bound: float, tie_bound: float | None) -> None:
    every = row.near_ties == row.rows
    lines = [(bound, Colour.PURPLE if every else Colour.BLUE)]
    lines += [] if tie_bound is None else [(tie_bound, Colour.PURPLE)]
    for value, colour in lines:
        if math.isfinite(value):
            axes.axhline(value, color=colour.value, linewidth=1.5, linestyle=BROKEN)
            annotate(axes, f"{value:.1e}", (axes.get_xlim()[1], value), (0, 3), colour, "right")
