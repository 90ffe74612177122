"""Tokenizers of bytes without merges, as the tiny model has one, with the special tokens that a test wants."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TINY_VOCABULARY = 512
_TINY = ("startoftext", "endoftext", "constrain", "channel", "start", "end", "message", "call", "return")
TINY_SPECIAL = {f"<|{name}|>": TINY_VOCABULARY - len(_TINY) + index for index, name in enumerate(_TINY)}


def byte_symbols() -> list[str]:
    """The symbol of each byte in a byte-level vocabulary: printable bytes are themselves, others follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
    assert sorted(symbols) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return symbols


def byte_tokenizer(special: Mapping[str, int]) -> Tokenizer:
    """Bytes, names that no text contains, and special tokens with these ids, which follow each other."""
    names = [f"<|{index}|>" for index in range(256, min(special.values(), default=256))]
    tokenizer = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate([*byte_symbols(), *names])}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([name for name, _ in sorted(special.items(), key=lambda item: item[1])])
    assert all(tokenizer.token_to_id(name) == index for name, index in special.items())
    return tokenizer
