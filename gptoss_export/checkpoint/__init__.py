"""Reading gpt-oss checkpoints in the three layouts they come in, and writing random ones."""

from __future__ import annotations

from .layouts import LAYOUTS, Layout
from .reader import Checkpoint, open_checkpoint

__all__ = ["LAYOUTS", "Checkpoint", "Layout", "open_checkpoint"]
