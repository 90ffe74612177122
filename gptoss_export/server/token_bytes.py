"""The bytes of tokens, for log probabilities: a token can hold a part of a character."""

from __future__ import annotations

from ..harmony.vocabulary import HarmonyTokenizer
from ..text.byte_level import bytes_of_name


class TokenBytes:
    """Knows the bytes of each token of a byte-level tokenizer."""

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._added = frozenset(self._tokenizer.get_added_tokens_decoder())

    def of(self, token: int) -> bytes:
        """Nothing where the tokenizer has no such token."""
        return bytes_of_name(self._tokenizer.id_to_token(token), token in self._added)
