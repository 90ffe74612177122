"""How a byte-level vocabulary writes the bytes of its tokens (as GPT-2's does)."""

from __future__ import annotations

# A byte-level vocabulary writes a byte as a character: a printable byte as itself, and the others as those from 256 on.
_PRINTABLE = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
_OTHERS = {256 + index: byte for index, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}


def bytes_of_name(name: str | None, added: bool) -> bytes:
    """The bytes of a token of this name; none where there is no such token. added: the name is the token's text."""
    if name is None:
        return b""
    symbols = name if added else name.translate(_OTHERS)
    try:
        return symbols.encode() if added else symbols.encode("latin-1")
    except UnicodeEncodeError:  # is not written in this way, and decoders show it as it is
        return name.encode()
