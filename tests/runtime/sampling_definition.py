"""How a token is chosen, written from the definition in Python numbers, for one row. The samplers are compared with it.

Of the tokens in the order of their probability, lower ids first among equals, `top_k`, `top_p` and `min_p` keep a
beginning.
Each kept token gets its scaled logit plus Gumbel noise, -log(-log u), and the largest sum wins. u is made of 23 bits of
a hash of the seed, the position of the token before, and the token: SplitMix64's finalizer (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptoss_export import SamplingParams

_WORD = 2**64


def probabilities(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    top = max(logits)
    powers = [math.exp((logit - top) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def kept_tokens(logits: Sequence[float], params: SamplingParams) -> list[int]:
    """The tokens that can be drawn, the most likely first."""
    if params.temperature == 0:
        return [logits.index(max(logits))]
    probability = probabilities(logits, params.temperature)
    order = sorted(range(len(logits)), key=lambda token: (-probability[token], token))
    kept: list[int] = []
    for token in order[: params.top_k or None]:
        if kept and sum(probability[before] for before in kept) >= params.top_p:
            break
        if probability[token] < params.min_p * probability[order[0]]:
            break
        kept.append(token)
    return kept


def noise(seed: int, position: int, token: int) -> float:
    bits = (seed * 0x1E3779B97F4A7C15 + position * 0x3C6EF372FE94F82B + token * 0x5851F42D4C957F2D) % _WORD
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % _WORD
    uniform = (((bits ^ bits >> 31) >> 41) + 0.5) / 2**23
    return -math.log(-math.log(uniform))


def chosen_token(logits: Sequence[float], position: int, params: SamplingParams) -> int:
    """position: of the token before."""
    kept = kept_tokens(logits, params)
    if len(kept) == 1:
        return kept[0]
    return max(kept, key=lambda token: logits[token] / params.temperature + noise(params.seed, position, token))


def logprob(logits: Sequence[float], token: int) -> float:
    """At temperature 1, whatever the token was drawn with."""
    return math.log(probabilities(logits)[token])
