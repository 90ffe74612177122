"""How far two tensors are apart: two numbers, and the bounds they are held to. Used by tests and `verify`.

Each element's error is taken relative to its expected magnitude, floored at the tensor's root mean
square, so that entries near zero do not blow it up:

    e = |actual - expected| / max(|expected|, rms(expected)),     max = max(e),  rms = sqrt(mean(e^2))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Error:
    """The two numbers. They are NaN where the actual tensor holds a NaN or an infinity."""

    max: float
    rms: float

    def within(self, bound: Error) -> bool:
        """False for NaN, whatever the bound."""
        return self.max <= bound.max and self.rms <= bound.rms

    def times(self, factor: float) -> Error:
        return Error(factor * self.max, factor * self.rms)

    def __str__(self) -> str:
        return f"max {self.max:.2e}, rms {self.rms:.2e}"


# What results computed in a dtype may differ by from the same computed in float32.
TOLERANCES: dict[torch.dtype, Error] = {
    torch.float32: Error(max=1e-4, rms=2e-5),
    torch.float16: Error(max=1e-2, rms=1e-3),
    torch.bfloat16: Error(max=2e-2, rms=4e-3),
}


_PIECE = 1 << 24  # elements converted to float64 at a time


def error(actual: torch.Tensor, expected: torch.Tensor) -> Error:
    """Two-number error of `actual` against `expected` (same shape), computed in float64."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    if not bool(torch.isfinite(actual).all()):
        return Error(float("nan"), float("nan"))
    got, want = actual.detach().flatten(), expected.detach().flatten()
    pieces = range(0, max(1, want.numel()), _PIECE)
    square = sum(want[at : at + _PIECE].double().square().sum().item() for at in pieces)
    floor = max((square / max(1, want.numel())) ** 0.5, 1e-30)
    largest, total = 0.0, 0.0
    for at in pieces:
        exact = want[at : at + _PIECE].double()
        relative = (got[at : at + _PIECE].double() - exact).abs() / exact.abs().clamp(min=floor)
        largest = max(largest, relative.max().item())
        total += relative.square().sum().item()
    return Error(largest, (total / want.numel()) ** 0.5)
