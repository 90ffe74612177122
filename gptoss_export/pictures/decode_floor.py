"""A decode step beside its floor, for each batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bars import Bar, Part, draw_bars
from .keys import Key, Shape
from .page import Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from ..bench import Measurement

_SHOWN = 40  # measurements with a bar


def floor_picture(measurements: Sequence[Measurement]) -> Picture:
    """measurements: one or more."""
    shown = measurements[:_SHOWN]
    bars = [
        Bar(
            f"{_sequences(row.batch)}, context {row.context:,}",
            (Part(row.decode_step_s * 1e3),),
            f"{row.decode_step_s * 1e3:.3f} ms, {row.share_of_floor:.0%}, {row.decode_tok_s:,.1f} tok/s",
            mark=row.floor_s * 1e3,
        )
        for row in shown
    ]
    keys = (Key("a decode step, and the share of its floor", Colour.BLUE), Key("floor", Colour.INK, Shape.ACROSS))

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, "ms a step", keys)

    best = max(shown, key=lambda row: row.share_of_floor)
    more = f"; the first {len(shown)} of {len(measurements)}" if len(shown) < len(measurements) else ""
    return make_picture(
        "decode-step",
        f"Decode step beside its floor{more}",
        f"{len(shown)} measurements. Nearest to its floor is the step of {_sequences(best.batch)} at a context of "
        f"{best.context:,}: {best.decode_step_s * 1e3:.3f} ms, of which the floor is {best.share_of_floor:.0%}.",
        draw,
    )


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count:,} sequences"
