"""Masks of tokens: a bit for each token of the model, in little-endian words of 32."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from ..harmony.vocabulary import HarmonyTokenizer
from ..model.sampling_state import MASK_WORD, mask_words
from .token_bytes import TokenBytes


class Masks:
    """Masks that need no grammar. Ids that the tokenizer lacks are in none of them."""

    def __init__(self, control: HarmonyTokenizer, tokens: TokenBytes) -> None:
        self.size = mask_words(len(tokens.each)) * MASK_WORD // 8
        self._text = self._of(tokens.texts())
        self._control = control

    def only(self, *tokens: int) -> bytes:
        """These tokens alone."""
        return bytes(self._of(tokens))

    @cached_property
    def text_and_end(self) -> bytes:
        """Free text that `<|end|>` ends."""
        return self._text_and(self._control.end)

    @cached_property
    def text_and_return(self) -> bytes:
        """Free text that `<|return|>` ends."""
        return self._text_and(self._control.return_)

    @cached_property
    def stops(self) -> bytes:
        """The tokens that end an answer."""
        return self.only(*self._control.stop_tokens)

    def is_text(self, token: int) -> bool:
        """Whether free text can hold a token."""
        return 0 <= token < 8 * self.size and bool(self._text[token // 8] >> token % 8 & 1)

    def _text_and(self, token: int) -> bytes:
        mask = bytearray(self._text)
        mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    def _of(self, tokens: Iterable[int]) -> bytearray:
        mask = bytearray(self.size)
        for token in tokens:
            mask[token // 8] |= 1 << token % 8
        return mask
