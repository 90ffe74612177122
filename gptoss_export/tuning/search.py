"""Searches for the fastest launch config by coordinate descent: it changes one number at a time, until no change helps.

The best value of one number hardly depends on the numbers of other parts, and the kernel's own guess is a good start.
So the search needs far fewer timings than trying all combinations. Timings vary by about MARGIN, so a smaller gain
does not count. In the end the best config and the guess are timed in turn, and the guess is kept where the gain does
not repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..kernels.launch_config import ConfigSpace, LaunchConfig, flatten

MARGIN = 0.01  # the smallest gain that counts, as a share of the time
_ROUNDS = 3  # over all numbers, at most
_FINAL_TIMINGS = 5  # of the best config and of the guess, in turn


@dataclass(frozen=True)
class Best:
    """The launch config that was found.

    us          microseconds of a call with it
    default_us  microseconds with the kernel's own guess; infinite where the guess is refused
    tried       how many launch configs were timed
    """

    config: LaunchConfig
    us: float
    default_us: float
    tried: int


def search(
    space: ConfigSpace,
    microseconds: Callable[[LaunchConfig], float],
    report: Callable[[int], None] = lambda tried: None,
) -> Best:
    """The fastest launch config of a space.

    microseconds  times a launch config; infinite for one that cannot be used
    report        is called before each timing with the number of launch configs timed so far
    """
    default_us = microseconds(space.default)
    if math.isinf(default_us):  # the results of other configs could not be compared with anything
        return Best(space.default, default_us, default_us, tried=1)
    times = {tuple(flatten(space.default)): default_us}
    best = space.default
    for _ in range(_ROUNDS):
        before = best
        for part, numbers in space.options.items():
            for number, values in numbers.items():
                for value in values:
                    candidate = {**best, part: best[part]._replace(**{number: value})}
                    key = tuple(flatten(candidate))
                    if key in times:
                        continue
                    report(len(times))
                    times[key] = microseconds(candidate)
                    if times[key] < times[tuple(flatten(best))] * (1 - MARGIN):
                        best = candidate
        if best is before:
            break
    if best is not space.default:
        pairs = [(microseconds(best), microseconds(space.default)) for _ in range(_FINAL_TIMINGS)]
        us, default_us = (min(column) for column in zip(*pairs, strict=True))
        if us <= default_us * (1 - MARGIN):
            return Best(best, us, default_us, len(times))
    return Best(space.default, default_us, default_us, len(times))
