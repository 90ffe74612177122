"""Text for people: what names of others may not do, and amounts with a unit."""

from __future__ import annotations

import re

# Control characters but tab and line break, marks that turn the direction of a line, and surrogates.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with each character that steers a terminal written out, such as \\x1b. It can be encoded in UTF-8."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def size(count: float) -> str:
    """Bytes for people: "12 B", "3.4 MB"."""
    units = ["B", "KB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"
