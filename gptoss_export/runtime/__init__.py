"""Running an artifact. Imports torch, safetensors and what the artifact's target needs; nothing that builds."""

from __future__ import annotations

from .generate import Generation, Token
from .runner import Runner
from .sampler import Sampling

__all__ = ["Generation", "Runner", "Sampling", "Token"]
