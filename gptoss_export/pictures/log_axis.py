"""A logarithmic axis of an error or a margin: its ends and its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST = 12  # decades that are shown, the upper ones


class LogRange(NamedTuple):
    """The ends of an axis."""

    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """The powers of ten, and where there are few also twice and five times these."""
        lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        powers = [10.0**power for power in range(lowest, highest + 1)]
        inside = [power for power in powers if self.low <= power <= self.high]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // 6)]
        more = [power * factor for power in powers for factor in (1, 2, 5)]
        return [value for value in more if self.low <= value <= self.high]

    def clipped(self, value: float) -> float:
        """The value, or the end of the axis that is nearest to it."""
        return min(max(value, self.low), self.high)


def log_range(values: Iterable[float]) -> LogRange:
    """An axis that has these values inside, as far as they are above 0 and finite."""
    found = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    high = max(found) * 1.6
    return LogRange(max(min(found) / 1.6, high / 10.0**_MOST), high)


def log_text(value: float) -> str:
    """A tick: a plain number where that is short, otherwise a power of ten, such as 10⁻⁴ or 2·10⁻⁵."""
    if 1e-3 < value < 1e4:
        return f"{value:,g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = round(value / 10.0**power)
    return f"{'' if factor == 1 else f'{factor}·'}10{str(power).translate(_SUPERSCRIPTS)}"
