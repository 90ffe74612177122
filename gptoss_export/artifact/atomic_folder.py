"""Folders and files that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GptOssExportError
from ..machine_limits import writes
from ..temporary_folder import PARTIAL, TemporaryFolder, remove_leftovers


def check_new_folder(folder: Path, error: type[GptOssExportError]) -> None:
    """Raise `error` if `folder` cannot be made: it exists, or its parent is not a folder."""
    if folder.exists() or folder.is_symlink():  # a link to nothing is no name for a folder either
        raise error(f"{folder}: exists already; choose another name or remove it first")
    if not folder.absolute().parent.is_dir():
        raise error(f"{folder.absolute().parent}: not a folder; make it first")


@contextmanager
def replace_folder(folder: Path, error: type[GptOssExportError]) -> Iterator[Path]:
    """Yield a temporary sibling of `folder` to write into. It is renamed to `folder` at the end, or removed on failure.

    The sibling's name starts with a dot and ends in `PARTIAL`. A killed process leaves it behind. Nothing loads a
    folder of such a name, and the next call for the same parent folder removes it, as it does what killed processes
    left in the system's temporary folder.
    """
    check_new_folder(folder, error)
    remove_leftovers()
    with TemporaryFolder(folder.absolute().parent, f".{folder.name}-", PARTIAL) as partial:
        yield partial.path
        with writes(folder):
            _set_usual_permissions(partial.path)
            partial.rename(folder)


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yield a path to write to. What is written there becomes `file` at the end, or is removed on failure.

    A file that exists keeps its permissions. Raises OSError, which names `file` where writing fails. A killed process
    leaves a folder as `replace_folder` does.
    """
    file = Path(os.path.realpath(file))  # a link stays a link
    with TemporaryFolder(file.parent, f".{file.name}-", PARTIAL) as partial, writes(file):
        written = partial.path / file.name
        yield written
        _set_usual_permissions(partial.path)
        if file.exists():
            shutil.copymode(file, written)
        written.replace(file)


def _set_usual_permissions(folder: Path) -> None:
    """Give the folder and its files the permissions of new files. mkdtemp and safetensors make them private.

    The umask is read from a file that is made for it: asking the system means to change it for a moment, for all
    threads of the process.
    """
    probe = folder / ".umask"
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777))
    allowed = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    folder.chmod(allowed)
    for path in folder.rglob("*"):
        # A file with more than one link is shared with a folder that is not ours.
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(allowed & 0o666)
