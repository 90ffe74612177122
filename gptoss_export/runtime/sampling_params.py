"""How a sequence chooses its tokens: the parameters, without what applies them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from ..errors import RunError, raise_all

LOWEST_TEMPERATURE = 2.0**-126  # the smallest normal number of float32: a GPU may take smaller ones for 0
# Random numbers are a hash of seed, position and token id: SplitMix64's odd multipliers and its finalizer (Steele, Lea,
# Flood 2014), as unsigned 64-bit numbers. Both samplers compute it.
SEED_FACTOR, POSITION_FACTOR, TOKEN_FACTOR = 0x1E3779B97F4A7C15, 0x3C6EF372FE94F82B, 0x5851F42D4C957F2D
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class SamplingParams:
    """How a sequence chooses its tokens.

    temperature  0 takes the most likely token; otherwise logits are divided by it
    top_k        only the k most likely tokens; 0: all
    top_p        only the smallest set of most likely tokens whose probability, among all tokens, reaches p
    seed         any 64-bit integer; the same seed draws the same tokens

    A temperature that float32 does not hold exactly, below 2^-126, is 2^-126 or 0. Then only the most likely tokens are
    drawn, as with 0.

    Raises RunError naming every value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not (_is_number(self.temperature) and 0 <= self.temperature < float("inf")):
            problems.append(f"temperature: found {self.temperature!r}, expected a number of 0 or more")
        if not (_is_integer(self.top_k) and 0 <= self.top_k < 2**63):
            problems.append(f"top_k: found {self.top_k!r}, expected an integer of 0 (all) to 2**63 - 1")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            problems.append(f"top_p: found {self.top_p!r}, expected a number above 0 and at most 1")
        if not (_is_integer(self.seed) and -(2**63) <= self.seed < 2**63):
            problems.append(f"seed: found {self.seed!r}, expected a 64-bit integer")
        raise_all(RunError, "sampling parameters out of range", problems)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
