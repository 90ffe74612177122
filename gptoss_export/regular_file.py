"""Reads files that somebody else made, where a folder, a FIFO or a device may be in their place."""

from __future__ import annotations

import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegularError(Exception):
    """What is found in the place of a file, and what is expected, as a complete sentence."""


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, or fewer where it is shorter.

    Raises NotRegularError for a folder, a FIFO, a device or a socket, and OSError for a file that cannot be read.
    """
    mode = path.stat().st_mode  # before opening: the opening of a FIFO waits for a writer
    if not stat.S_ISREG(mode):
        found = next((name for test, name in _KINDS if test(mode)), "something else")
        raise NotRegularError(f"found {found}, expected a regular file")
    with path.open("rb") as stream:
        return stream.read(count)
