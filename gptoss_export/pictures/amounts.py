"""Amounts of bytes on an axis, and in a few words."""

from __future__ import annotations

from collections.abc import Sequence

from ..shown_text import size


def byte_unit(most: float) -> tuple[str, float]:
    """The unit for amounts of up to `most` bytes, and its bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if most >= scale:
            return unit, scale
    return "bytes", 1.0


def sizes(amounts: Sequence[int]) -> str:
    """The size that all amounts have, or the smallest and the largest."""
    low, high = min(amounts), max(amounts)
    return size(low) if size(low) == size(high) else f"{size(low)} to {size(high)}"
