"""Values that a caller of Python gives: how errors show them, and which are whole numbers."""

from __future__ import annotations

import operator
from typing import Any

_LONGEST = 80  # characters


def shown(value: object) -> str:
    """A value of any kind and size for an error: its beginning, in one short line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def whole_number(value: Any) -> int | None:
    """A whole number of Python, numpy or torch as Python's; None for what is none, and for true and false."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
