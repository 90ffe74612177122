"""The bytes of tokens: a token can hold a part of a character, and many characters."""

from __future__ import annotations

from ..harmony.vocabulary import HarmonyTokenizer
from ..text.byte_level import bytes_of_name


class TokenBytes:
    """Knows the bytes of each token of a byte-level tokenizer. Making it takes a quarter of a second with gpt-oss's.

    longest  the most bytes of text that one token stands for. Special tokens, which text makes none of, do not count
    """

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        # The name of a token that was not added has a character for each byte.
        names = [token.content.encode() for token in added.values() if not token.special]
        self.longest = max(map(len, (*names, *self._tokenizer.get_vocab(with_added_tokens=False))))

    def of(self, token: int) -> bytes:
        """Nothing where the tokenizer has no such token."""
        return bytes_of_name(self._tokenizer.id_to_token(token), token in self._added)
