"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), with which three of the ops begin."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, H] float32 to [T, H] float32; the caller rounds."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.float()
