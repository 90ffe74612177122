"""Reads gpt-oss checkpoints in the layouts they come in, and writes synthetic ones."""

from __future__ import annotations

from .layouts import LAYOUTS, Layout
from .reader import Checkpoint, open_checkpoint

__all__ = ["LAYOUTS", "Checkpoint", "Layout", "open_checkpoint"]
