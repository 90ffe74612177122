"""A prompt that was checked once, for all requests that share it."""

from __future__ import annotations

from typing import Any

from .arguments import token_ids


class CheckedTokens(tuple[int, ...]):
    """Token ids of a model. A request takes them as they are: checking and copying the tokens of a long prompt takes
    time, for each answer to it.

    vocab_size  tokens of the model
    """

    vocab_size: int

    @classmethod
    def of(cls, tokens: Any, vocab_size: int) -> CheckedTokens:
        """The ids of a sequence, an array or a tensor.

        Raises RunError for what is no sequence of whole numbers, and for one outside of the vocabulary.
        """
        checked = cls(token_ids("token", tokens, vocab_size))
        checked.vocab_size = vocab_size
        return checked
