"""How a sequence chooses its tokens: the parameters, without what applies them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from ..errors import RunError, raise_all
from ..values import shown, whole_number

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
    min_p        only tokens whose probability is at least this share of the most likely token's; 0: all

    A temperature that float32 does not hold exactly, below 2^-126, is 2^-126 or 0. Then only the most likely tokens are
    drawn, as with 0.

    Raises RunError naming every value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        for name, convert, valid, expected in (
            ("temperature", _number, lambda value: 0 <= value < float("inf"), "a number of 0 or more"),
            ("top_k", whole_number, lambda value: 0 <= value < 2**63, "an integer of 0 (all) to 2**63 - 1"),
            ("top_p", _number, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
            ("seed", whole_number, lambda value: -(2**63) <= value < 2**63, "a 64-bit integer"),
            ("min_p", _number, lambda value: 0 <= value <= 1, "a number of 0 (all) to 1"),
        ):
            value = convert(getattr(self, name))
            if value is None or not valid(value):
                problems.append(f"{name}: found {shown(getattr(self, name))}, expected {expected}")
            else:
                object.__setattr__(self, name, value)  # numbers of other libraries become Python's
        raise_all(RunError, "sampling parameters out of range", problems)


def _number(value: object) -> float | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        return None
