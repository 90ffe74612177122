"""Log probabilities as OpenAI's /v1/completions has them: a list for each kind of figure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from ..runtime.generation import Token
from .logprobs import finite
from .token_bytes import TokenBytes

LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


class CompletionLogprobs:
    """The log probabilities of one answer.

    top  most likely tokens at each place. The chosen one is listed too where it is none of them, as in OpenAI's API
    """

    def __init__(self, token_bytes: TokenBytes, top: int) -> None:
        self._bytes, self._top = token_bytes, top
        # It gives a character with the last of its bytes: all tokens with bytes of it are in one place.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters before the next token

    def lists(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        """Those of the next tokens."""
        found: dict[str, list[Any]] = {name: [] for name in LISTS}
        for token in tokens:
            found["tokens"].append(self._name(token.id))
            found["token_logprobs"].append(finite(token.logprob))
            found["top_logprobs"].append(self._likely(token))
            found["text_offset"].append(self._place(self._bytes.of(token.id)))
        return found

    def _place(self, raw: bytes) -> int:
        """How many characters come before the one that holds the first byte of the next token."""
        pending, _ = self._decoder.getstate()
        broken = bool(pending and raw) and not 0x80 <= raw[0] < 0xC0  # a character that was begun, and does not go on
        place = self._offset + broken
        self._offset += len(self._decoder.decode(raw))
        return place

    def _likely(self, token: Token) -> dict[str, float]:
        likely = {self._name(other): finite(logprob) for other, logprob in token.top_logprobs[: self._top]}
        likely.setdefault(self._name(token.id), finite(token.logprob))
        return likely

    def _name(self, token: int) -> str:
        """The text of a token. One that holds a part of a character has the name that OpenAI gives it, such as
        "bytes:\\xc3", so that two of them differ."""
        raw = self._bytes.of(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw)
