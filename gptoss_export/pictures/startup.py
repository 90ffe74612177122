"""Start-up as a bar: from the start of the process to the first token, and the stages one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from .bars import Bar, Part, draw_bars
from .page import Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture


def startup_picture(seconds: Mapping[str, float]) -> Picture:
    """seconds: of each stage, in order."""
    total = sum(seconds.values())
    longest = max(seconds, key=lambda name: seconds[name])
    shades = (Colour.BLUE, Colour.TEAL)
    pieces = [Part(value, shades[index % 2]) for index, value in enumerate(seconds.values())]
    bars, passed = [Bar("all", tuple(pieces), f"{total:.2f} s")], 0.0
    for (name, value), piece in zip(seconds.items(), pieces, strict=True):
        bars.append(Bar(name, (piece,), f"{value:.2f} s", start=passed))
        passed += value

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, "seconds since the process began")

    return make_picture(
        "startup",
        "Start-up, from the start of the process to the first token",
        f"{total:.2f} seconds in {len(seconds)} stages. The longest is {longest}: {seconds[longest]:.2f} seconds.",
        draw,
    )
