"""Running an artifact. Imports what the artifact's target needs to run, and nothing that builds."""

from __future__ import annotations

from .generate import Generation, Token
from .runner import Runner
from .sampling import Sampling

__all__ = ["Generation", "Runner", "Sampling", "Token"]
