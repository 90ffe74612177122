"""This target has no options of its own."""

from __future__ import annotations

from ..target import NoOptions as Options

__all__ = ["Options"]
