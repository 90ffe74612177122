"""stdout and stderr: what they do with text that they cannot show."""

from __future__ import annotations

import codecs
import io
import sys


def print_any_text() -> None:
    """Let stdout and stderr take every character.

    A stream in ASCII becomes UTF-8: it is that of a locale that says nothing. Another encoding stays, and what it does
    not have becomes a question mark.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="replace")
