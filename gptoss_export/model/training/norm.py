"""The gradient of RMSNorm (model/ops/norm.py), whose weight is not trained."""

from __future__ import annotations

import torch


def rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The gradient of x [T, H] for a gradient of the result, both float32.

    With r = 1 / sqrt(mean(x^2) + eps) and u = grad * weight:   dx = r u - r^3 mean(u x) x"""
    r = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    u = grad * weight.float()
    return r * u - x * r.pow(3) * (u * x).mean(dim=-1, keepdim=True)
