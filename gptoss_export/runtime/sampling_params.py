"""How a sequence chooses its tokens: the parameters, without what applies them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RunError, raise_all

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

    Raises RunError naming every value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: found {self.temperature}, expected 0 or more")
        if self.top_k < 0:
            problems.append(f"top_k: found {self.top_k}, expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: found {self.top_p}, expected above 0 and at most 1")
        if not -(2**63) <= self.seed < 2**63:
            problems.append(f"seed: found {self.seed}, expected a 64-bit integer")
        raise_all(RunError, "sampling parameters out of range", problems)
