"""The checkpoint layouts that this project reads: one file and one line here for each.

Checkpoints are matched in this order. "hf" accepts all names that begin as Hugging Face's do, so it is the last.
"""

from __future__ import annotations

from collections.abc import Collection

from . import hugging_face, hugging_face_bf16, original
from .layout import Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        original.LAYOUT,
        hugging_face_bf16.LAYOUT,
        hugging_face.LAYOUT,
    )
}


def layout_of(names: Collection[str]) -> Layout | None:
    """The layout of a checkpoint whose tensors have these names. None if it is no known layout."""
    return next((layout for layout in LAYOUTS.values() if layout.matches(names)), None)


__all__ = ["LAYOUTS", "Layout", "layout_of"]
