"""How far two tensors are apart: two numbers and their bounds. Tests and `verify` use no other metric.

Each element's error is relative to its expected magnitude, or to the root mean square of the expected tensor where
that is larger. So entries near zero do not dominate:

    e = |actual - expected| / max(|expected|, rms(expected)),     max = max(e),  rms = sqrt(mean(e^2))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Deviation:
    """The two numbers. They are NaN where the actual tensor holds a NaN or an infinity."""

    max: float
    rms: float

    def within(self, bound: Deviation) -> bool:
        """False for NaN, whatever the bound."""
        return self.max <= bound.max and self.rms <= bound.rms

    def times(self, factor: float) -> Deviation:
        """Both numbers times `factor`."""
        return Deviation(factor * self.max, factor * self.rms)

    def __str__(self) -> str:
        return f"max {self.max:.2e}, rms {self.rms:.2e}"


class RowDeviation(NamedTuple):
    """The deviation of one row of logits: its largest error and its mean square error."""

    max: float
    mean_square: float

    @property
    def rms(self) -> float:
        """The root of the mean square error."""
        return float(self.mean_square**0.5)


# Bounds for results computed in a dtype, compared with the same computed in float32.
TOLERANCES: dict[torch.dtype, Deviation] = {
    torch.float32: Deviation(max=1e-4, rms=2e-5),
    torch.float16: Deviation(max=1e-2, rms=1e-3),
    torch.bfloat16: Deviation(max=2e-2, rms=4e-3),
}


_PIECE = 1 << 24  # elements converted to float64 at a time


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> Deviation:
    """The deviation of `actual` from `expected`, computed in float64. Raises ValueError where the shapes differ."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    if not bool(torch.isfinite(actual).all()):
        return Deviation(float("nan"), float("nan"))
    got, want = actual.detach().flatten(), expected.detach().flatten()
    floor = _floor(want)
    largest, total = 0.0, 0.0
    for at in _starts(want):
        relative = _relative(got[at : at + _PIECE], want[at : at + _PIECE], floor)
        largest = max(largest, relative.max().item())
        total += relative.square().sum().item()
    return Deviation(largest, (total / want.numel()) ** 0.5)


def row_deviations(actual: torch.Tensor, expected: torch.Tensor) -> list[RowDeviation]:
    """The deviation of each row of [n, V]. The root mean square that errors are relative to is that of all rows."""
    floor = _floor(expected.flatten())
    relative = (_relative(got, want, floor) for got, want in zip(actual, expected, strict=True))
    return [RowDeviation(row.max().item(), row.square().mean().item()) for row in relative]


def _starts(values: torch.Tensor) -> range:
    return range(0, max(1, values.numel()), _PIECE)


def _floor(expected: torch.Tensor) -> float:
    """The root mean square of a flat tensor, and never 0."""
    square = sum(expected[at : at + _PIECE].double().square().sum().item() for at in _starts(expected))
    return max((square / max(1, expected.numel())) ** 0.5, 1e-30)


def _relative(actual: torch.Tensor, expected: torch.Tensor, floor: float) -> torch.Tensor:
    exact = expected.double()
    return (actual.double() - exact).abs() / exact.abs().clamp(min=floor)
