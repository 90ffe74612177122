"""Log probabilities of tokens as OpenAI's API has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..runtime.generation import Token
from .token_bytes import TokenBytes

_LOWEST = -9999.0  # in place of minus infinity, which JSON does not have


def logprobs_json(tokens: Sequence[Token], names: TokenBytes, top: int) -> list[dict[str, Any]]:
    """The tokens with their log probabilities, and those of the most likely tokens at each place."""
    return [
        _entry(token.id, token.logprob, names)
        | {"top_logprobs": [_entry(other, logprob, names) for other, logprob in token.top_logprobs[:top]]}
        for token in tokens
    ]


def finite(logprob: float) -> float:
    """A log probability as a number of JSON."""
    return logprob if math.isfinite(logprob) else _LOWEST


def _entry(token: int, logprob: float, names: TokenBytes) -> dict[str, Any]:
    raw = names.of(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(raw)}
