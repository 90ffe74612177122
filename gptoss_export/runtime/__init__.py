"""Running an artifact. Imports what the artifact's target needs to run, and nothing that builds."""

from __future__ import annotations

from .generation import Generation, Token
from .runner import Runner
from .sampling_params import Sampling

__all__ = ["Generation", "Runner", "Sampling", "Token"]
