"""The bytes that each token of a model stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..text.byte_level import bytes_of_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token of a model, by its id.

    each     b"" for an id that the tokenizer lacks; the name of a special token
    special  ids of the special tokens, which no text holds
    """

    each: list[bytes]
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> TokenBytes:
        """Those of a byte-level tokenizer, which gpt-oss's is. Raises UsageError for another one."""
        from tokenizers.decoders import ByteLevel

        if not isinstance(tokenizer.decoder, ByteLevel):
            raise UsageError(
                f"structured output: found a tokenizer with the decoder {type(tokenizer.decoder).__name__}, expected "
                "ByteLevel, as gpt-oss's has; build the artifact from a checkpoint with the model's own tokenizer"
            )
        added = tokenizer.get_added_tokens_decoder()
        names = [tokenizer.id_to_token(token) for token in range(vocab_size)]
        return cls(
            [bytes_of_name(name, token in added) for token, name in enumerate(names)],
            frozenset(token for token, content in added.items() if content.special),
        )

    def texts(self) -> list[int]:
        """The ids of the tokens that text is made of."""
        return [token for token, content in enumerate(self.each) if content and token not in self.special]
