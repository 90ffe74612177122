"""The kernels of a decode step: how many microseconds each adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bars import Bar, Part, draw_bars
from .page import Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from ..bench import KernelTime

_SHOWN = 14  # kernels with a bar of their own


def kernels_picture(kernels: Sequence[KernelTime]) -> Picture:
    """kernels: the longest first, one or more."""
    total = sum(kernel.us for kernel in kernels)

    def bar(name: str, launches: float, us: float, colour: Colour) -> Bar:
        share = us / total if total else 0.0
        each = f" = {launches:g} × {us / launches:.2f}" if launches > 1 else ""
        return Bar(name, (Part(us, colour),), f"{us:.1f}{each} us, {share:.1%}")

    shown = list(kernels) if len(kernels) <= _SHOWN + 1 else list(kernels[:_SHOWN])
    rest = kernels[len(shown) :]
    bars = [bar(kernel.name, kernel.launches, kernel.us, Colour.BLUE) for kernel in shown]
    if rest:
        us = sum(kernel.us for kernel in rest)
        bars.append(bar(f"{len(rest)} other kernels", 1, us, Colour.GREY))

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, "us a step")

    first = kernels[0]
    return make_picture(
        "kernels",
        f"Kernels of a decode step of {total:,.0f} us",
        f"{len(kernels)} kernels. The longest is {first.name}: {first.us:.1f} of {total:.1f} microseconds.",
        draw,
    )
