"""Improves a cut one number at a time, until none can be improved (coordinate descent).

Numbers of a cut hardly depend on those of its other parts, and the kernel's own guess is a good start: so it finds in some
forty timings what all combinations would take thousands for. A change counts from MARGIN on, since times vary by about that;
and in the end the best cut is timed beside the guess, in turn, and the guess is kept where it is no slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..kernels.kernel import Cut, Tiles, flat

MARGIN = 0.01
_ROUNDS = 3
_LAST = 5  # timings of the best and of the guess, in turn


@dataclass(frozen=True)
class Best:
    """The cut found, microseconds with it and with the kernel's own guess (infinite where that is refused), how many were
    timed."""

    tiles: Tiles
    us: float
    default_us: float
    tried: int


def search(cut: Cut, microseconds: Callable[[Tiles], float], report: Callable[[int], None] = lambda tried: None) -> Best:
    """`microseconds` times one cut, infinite where it cannot be used; `report` is told how many were timed."""
    default_us = microseconds(cut.default)
    if math.isinf(default_us):  # then there is nothing to hold the results of others against
        return Best(cut.default, default_us, default_us, tried=1)
    times = {tuple(flat(cut.default)): default_us}
    best = cut.default
    for _ in range(_ROUNDS):
        before = best
        for part, numbers in cut.options.items():
            for number, values in numbers.items():
                for value in values:
                    candidate = {**best, part: best[part]._replace(**{number: value})}
                    key = tuple(flat(candidate))
                    if key in times:
                        continue
                    report(len(times))
                    times[key] = microseconds(candidate)
                    if times[key] < times[tuple(flat(best))] * (1 - MARGIN):
                        best = candidate
        if best is before:
            break
    if best is not cut.default:
        pairs = [(microseconds(best), microseconds(cut.default)) for _ in range(_LAST)]
        us, default_us = (min(column) for column in zip(*pairs, strict=True))
        if us <= default_us * (1 - MARGIN):
            return Best(best, us, default_us, len(times))
    return Best(cut.default, default_us, default_us, len(times))
