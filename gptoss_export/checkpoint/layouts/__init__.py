"""The checkpoint layouts that this project reads: one file and one line here for each.

Checkpoints are matched in this order. "hf" accepts all names that begin as Hugging Face's do, so it is the last. The
matrices outside of the experts may be in NF4 in any of them (nf4.py).
"""

from __future__ import annotations

from . import (
    hugging_face,
    hugging_face_bf16,
    hugging_face_nf4,
    hugging_face_nvfp4,
    hugging_face_separate,
    hugging_face_transposed,
    original,
)
from .layout import Layout, Tensors

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        original.LAYOUT,
        hugging_face_nvfp4.LAYOUT,
        hugging_face_nf4.LAYOUT,
        hugging_face_separate.LAYOUT,
        hugging_face_transposed.LAYOUT,
        hugging_face_bf16.LAYOUT,
        hugging_face.LAYOUT,
    )
}


def layout_of(tensors: Tensors) -> Layout | None:
    """The layout of a checkpoint with these tensors. None if it is no known layout."""
    return next((layout for layout in LAYOUTS.values() if layout.matches(tensors)), None)


__all__ = ["LAYOUTS", "Layout", "layout_of"]
