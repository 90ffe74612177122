"""The bytes of tokens, for log probabilities: a token can hold a part of a character."""

from __future__ import annotations

from ..harmony.vocabulary import HarmonyTokenizer


class TokenBytes:
    """Knows what a byte-level tokenizer writes for each byte: the printable characters of Latin-1 for themselves, and
    those from U+0100 on for the others in their order (as GPT-2's vocabulary does)."""

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self._whole = {index: token.content for index, token in added.items()}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        self._bytes = {chr(byte): byte for byte in printable}
        others = (byte for byte in range(256) if byte not in set(printable))
        self._bytes |= {chr(0x100 + index): byte for index, byte in enumerate(others)}

    def of(self, token: int) -> bytes:
        """Nothing where the tokenizer has no such token."""
        if token in self._whole:
            return self._whole[token].encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else bytes(self._bytes[character] for character in text)
