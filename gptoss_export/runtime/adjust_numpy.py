"""Changes the logits of one sequence before a token is chosen, on the host, in numpy, as `model.choice` does."""

from __future__ import annotations

import numpy as np

from .executor import Sampling


class Adjustment:
    """What the choices of one sequence depend on."""

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self._params = sampling.params
        self._in_prompt = np.zeros(vocabulary, bool)
        self._in_prompt[list(sampling.prompt)] = True
        self._answered = np.bincount(np.array(sampling.tokens, np.int64), minlength=vocabulary).astype(np.float32)
        self._stops = np.zeros(vocabulary, bool)
        self._stops[list(sampling.stop_tokens)] = True
        self._first = len(sampling.prompt) - 1  # the position of the token before the first choice
        self._allowed = np.ones(vocabulary, bool)

    def allow(self, mask: bytes) -> None:
        """The tokens that can be chosen next: a bit for each, in little-endian words of 32."""
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        self._allowed = bits[: len(self._allowed)].astype(bool)

    def apply(self, logits: np.ndarray, position: int) -> np.ndarray:
        """Logits [V] float32 as the choice takes them. position: of the token before."""
        params, answered = self._params, self._answered
        repetition = np.float32(params.repetition_penalty)
        changed = np.where(logits > 0, logits / repetition, logits * repetition)
        found = np.where(self._in_prompt | (answered > 0), changed, logits)
        found = found - np.float32(params.presence_penalty) * (answered > 0)
        found = found - np.float32(params.frequency_penalty) * answered
        for token, bias in params.logit_bias.items():
            found[token] += np.float32(bias)
        wanted = self._allowed
        if position < self._first + params.min_new_tokens and (self._allowed & ~self._stops).any():
            wanted = self._allowed & ~self._stops
        return np.where(wanted, found, np.float32(-np.inf)).astype(np.float32)

    def count(self, token: int) -> None:
        """A token was chosen."""
        self._answered[token] += 1
