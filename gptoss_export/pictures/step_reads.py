"""What a decode step of each width reads at least."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shown_text import size
from .amounts import byte_unit
from .bars import Bar, Part, draw_bars
from .keys import Key
from .page import PageTable, Picture
from .palette import Colour
from .sheet import Paper, Sheet, make_picture

if TYPE_CHECKING:
    from ..artifact.manifest import Manifest
    from ..bench import StepBytes

_SHOWN = 24  # widths with a bar
_KEYS = (
    Key("experts that are reached", Colour.BLUE),
    Key("other weights", Colour.GREY),
    Key("keys and values", Colour.ORANGE),
)


def reads_picture(manifest: Manifest) -> Picture:
    """The widths of the artifact's steps, full of sequences of its longest context."""
    context, widths = manifest.sizes.max_context, manifest.sizes.widths
    reads = _reads(manifest)
    unit, scale = byte_unit(max(read.total for read in reads.values()))
    bars = [
        Bar(
            f"width {width:,}",
            tuple(
                Part(part / scale, key.colour)
                for part, key in zip((read.experts, read.other_weights, read.kv_cache), _KEYS, strict=True)
            ),
            f"{size(read.total)}, {size(read.total / width)} a token",
        )
        for width, read in list(reads.items())[:_SHOWN]
    ]
    more = f"; the first {len(bars)} of {len(reads)} widths" if len(bars) < len(reads) else ""

    def draw(paper: Paper) -> Sheet:
        return draw_bars(paper, bars, f"{unit} a step", _KEYS)

    first, last = reads[widths[0]].total, reads[widths[-1]].total
    return make_picture(
        "reads",
        f"What a decode step reads at least, sequences of {context:,} tokens{more}",
        f"{len(widths)} widths. A step of {widths[0]:,} reads {size(first)}, a step of {widths[-1]:,} {size(last)}.",
        draw,
    )


def reads_table(manifest: Manifest) -> PageTable:
    """The same as a table."""
    rows = tuple(
        (str(width), *map(size, (*read, read.total, read.total / width))) for width, read in _reads(manifest).items()
    )
    headings = ("width", "experts that are reached", "other weights", "keys and values", "all", "a token")
    return PageTable(f"bytes of a decode step, context {manifest.sizes.max_context:,}", headings, rows, numbers_from=0)


def _reads(manifest: Manifest) -> dict[int, StepBytes]:
    """The bytes of a step by its width."""
    from ..bench import step_bytes  # which imports what runs an artifact

    return {width: step_bytes(manifest, width, manifest.sizes.max_context) for width in manifest.sizes.widths}
