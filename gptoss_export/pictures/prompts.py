"""How fast prompts are read, for each length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bars import Bar, Part, draw_bars
from .page import Picture
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from ..bench import Measurement


def prompts_picture(measurements: Sequence[Measurement]) -> Picture:
    """measurements: one or more. A prompt is timed alone; of several batches with one context the first is shown."""
    rows = {row.context: row for row in reversed(measurements)}
    shown = [rows[context] for context in sorted(rows)]
    bars = [
        Bar(
            f"{row.context:,} tokens",
            (Part(row.prefill_tok_s),),
            f"{row.prefill_tok_s:,.0f} tok/s, {row.context / row.prefill_tok_s * 1e3:,.1f} ms",
        )
        for row in shown
    ]

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, "tokens a second")

    fastest = max(shown, key=lambda row: row.prefill_tok_s)
    return make_picture(
        "prompts",
        "Prefill of one prompt, tokens a second",
        f"{len(shown)} lengths. The fastest is {fastest.context:,} tokens: {fastest.prefill_tok_s:,.0f} a second.",
        draw,
    )
