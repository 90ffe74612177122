"""Files whose bytes a program reads where they are mapped, such as weights on a CPU.

What another process writes into such a file shows up in the weights, and reading behind its new end ends the process
with SIGBUS. A copy would prevent both, and takes as much memory again as the model. So the files are looked at before
each call of a program: one that was changed since it was loaded ends the call with a RunError. A file that is cut while
a program runs still ends the process. A file that was replaced by another of its name, or removed, changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import ArtifactError, RunError, raise_all


class MappedFiles:
    """The files at `paths`, as they are now. Raises ArtifactError where one cannot be opened."""

    def __init__(self, paths: Iterable[Path]) -> None:
        try:
            self._files = [(path, path.open("rb")) for path in paths]
        except OSError as error:
            raise ArtifactError(f"{error.filename}: cannot be read ({error.strerror or error})") from None
        self._states = [_state(file.fileno()) for _, file in self._files]

    def check(self) -> None:
        """Raise RunError naming the files that were changed."""
        found = [_state(file.fileno()) for _, file in self._files]
        if found != self._states:
            problems = [
                f"{path}: found {now[0]} bytes, changed at {now[1] / 1e9:.3f} s, "
                f"expected {then[0]} bytes, changed at {then[1] / 1e9:.3f} s since 1970"
                for (path, _), now, then in zip(self._files, found, self._states, strict=True)
                if now != then
            ]
            raise_all(
                RunError, "files of weights were changed while they were in use; load the artifact again", problems
            )


def _state(file: int) -> tuple[int, int]:
    """Size and time of the last change of the contents. The time of a file's other changes, such as a new hard link,
    says nothing about them."""
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns
