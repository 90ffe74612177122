"""This target has no options of its own."""

from __future__ import annotations

from .. import NoOptions as Options

__all__ = ["Options"]
