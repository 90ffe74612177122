"""A picture to draw on, in two sizes: the page shows the one that fits the reader's screen."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..shown_text import plain
from .inline_svg import inline
from .library import FONT_SIZE, library_settings
from .page import Picture
from .palette import Colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SMALL = FONT_SIZE - 1  # units of secondary text
BROKEN = (0.0, (5.0, 3.0))  # the style of a line that is a bound or a floor
_POINTS = 72  # of an inch; matplotlib sizes a figure in inches, and writes one unit a point
_NO_XML = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}


@dataclass(frozen=True)
class Paper:
    """What a picture is drawn for: its width in units, and whether names and numbers have no room beside each other."""

    width: int
    narrow: bool


WIDE, NARROW = Paper(760, False), Paper(340, True)


class Sheet:
    """A picture of some height. Places are in units from the upper left corner."""

    def __init__(self, paper: Paper, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = paper.width, height
        self._figure = Figure(figsize=(paper.width / _POINTS, height / _POINTS), dpi=_POINTS)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A new plot, whose own area has this place and this size."""
        bottom = self.height - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self._figure.add_axes(place)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: Colour = Colour.INK,
        *,
        small: bool = False,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """One line of text, which is shown as it is. `y` is its middle."""
        self._figure.text(
            x / self.width,
            1 - y / self.height,
            one_line(text),
            color=colour.value,
            fontsize=SMALL if small else FONT_SIZE,
            fontweight="bold" if bold else "normal",
            horizontalalignment=align,
            verticalalignment="center_baseline",
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, width: float) -> None:
        """A straight line of some width."""
        from matplotlib.lines import Line2D

        x, y = zip(start, end, strict=True)
        across, up = [at / self.width for at in x], [1 - at / self.height for at in y]
        place = self._figure.transFigure
        line = Line2D(across, up, linewidth=width, color=colour.value, transform=place, solid_capstyle="butt")
        self._figure.add_artist(line)

    def point(self, x: float, y: float, colour: Colour, hollow: bool = False, marker: str = "o") -> None:
        """A mark of matplotlib's of the size that points of a plot have."""
        from matplotlib.lines import Line2D

        point = Line2D([x / self.width], [1 - y / self.height], marker=marker, transform=self._figure.transFigure)
        style_points(point, colour, hollow)
        self._figure.add_artist(point)

    def svg(self) -> str:
        """The picture as matplotlib writes it."""
        file = io.StringIO()
        self._figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return file.getvalue()


def style_points(points: Line2D, colour: Colour, hollow: bool = False) -> None:
    """Give the points of a line without a line their colour and size."""
    points.set(linestyle="none", markersize=6, markeredgewidth=1.5, markeredgecolor=colour.value)
    points.set_markerfacecolor("none" if hollow else colour.value)


def annotate(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    colour: Colour,
    align: Literal["left", "center", "right"] = "left",
    vertical: Literal["top", "center", "bottom", "baseline"] = "baseline",
) -> None:
    """Small text at a point of a plot, `offset` units to the right of it and above it."""
    axes.annotate(
        one_line(text),
        point,
        offset,
        textcoords="offset points",
        horizontalalignment=align,
        verticalalignment=vertical,
        color=colour.value,
        fontsize=SMALL,
    )


def make_picture(name: str, title: str, description: str, draw: Callable[[Paper], Sheet]) -> Picture:
    """Draw a picture in both sizes.

    name         for what refers to it; no other picture of the page has it
    title        what it shows, with the unit
    description  its numbers in a sentence or two, for a reader who does not see it
    """
    with library_settings():
        wide, narrow = (
            inline(draw(paper).svg(), f"{name}-{size}-", one_line(description))
            for size, paper in (("wide", WIDE), ("narrow", NARROW))
        )
    return Picture(name, title, wide, narrow)


def one_line(text: str) -> str:
    """Text that an XML document can hold, on one line."""
    return " ".join(plain(text).translate(_NO_XML).split())


def text_width(text: str, *, small: bool = False, bold: bool = False) -> float:
    """Units that a line takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=SMALL if small else FONT_SIZE, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(one_line(text), font, ismath=False)
    return float(width)


def fitted(text: str, width: float, *, small: bool = False, bold: bool = False) -> str:
    """The text, or its beginning and its end where the whole takes more than `width` units."""
    text = one_line(text)
    kept = len(text)
    shown = text
    while kept > 2 and text_width(shown, small=small, bold=bold) > width:
        kept = min(kept - 1, int(kept * 0.95))
        head = (kept + 1) // 2
        shown = f"{text[:head].rstrip()}…{text[len(text) - kept + head :].lstrip()}"
    return shown
