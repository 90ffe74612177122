"""Near ties: how many tokens have a router margin of at most so much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .log_axis import log_range, log_text
from .page import Picture
from .palette import Colour
from .sheet import BROKEN, Paper, Sheet, make_picture, text_width

if TYPE_CHECKING:
    from ..verification.report import Report

_LEFT, _RIGHT = 48, 14


def margins_picture(report: Report) -> Picture:
    """The margins of a report that has some."""
    share = report.near_ties / report.tokens
    return make_picture(
        "margins",
        "Share of the tokens whose router margin is at most so many logits",
        f"{report.near_ties} of {report.tokens} tokens have a near tie, which is a margin below {report.near_tie:.1e}: "
        f"{share:.1%}. The median margin is {report.margins[len(report.margins) // 2]:.1e}.",
        lambda paper: _draw(paper, report),
    )


def _draw(paper: Paper, report: Report) -> Sheet:
    from matplotlib.ticker import FixedFormatter, FixedLocator, MultipleLocator, NullLocator, PercentFormatter

    height = 210
    sheet = Sheet(paper, height + 66)
    axes = sheet.axes(_LEFT, 22, paper.width - _LEFT - _RIGHT, height)
    edge = report.near_tie
    shown = log_range([*report.margins, edge])
    shares = [index / (len(report.margins) - 1) for index in range(len(report.margins))]
    margins = [shown.clipped(margin) for margin in report.margins]
    axes.set_xscale("log")
    axes.set_xlim(*shown)
    axes.set_ylim(0, 1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(shown.ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([log_text(tick) for tick in shown.ticks]))
    axes.yaxis.set_major_locator(MultipleLocator(0.25))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("router margin, logits", loc="right", labelpad=2)
    axes.plot(margins, shares, color=Colour.BLUE.value, linewidth=2)
    if math.isfinite(edge) and edge > 0:
        below = [(margin, share) for margin, share in zip(margins, shares, strict=True) if margin <= edge]
        if below:
            axes.plot(*zip(*below, strict=True), color=Colour.PURPLE.value, linewidth=4)
        axes.axvline(edge, color=Colour.INK.value, linewidth=1.5, linestyle=BROKEN)
        text = f"near ties below {edge:.1e}: {report.near_ties / report.tokens:.1%}"
        wide = text_width(text)
        at = _LEFT + math.log(edge / shown.low) / math.log(shown.high / shown.low) * (paper.width - _LEFT - _RIGHT)
        sheet.text(min(max(at - wide / 2, 0), paper.width - wide), 10, text, Colour.PURPLE)
    return sheet
