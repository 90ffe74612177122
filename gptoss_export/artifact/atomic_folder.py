"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GptOssExportError


PARTIAL = ".partial"


def check_new_folder(folder: Path, error: type[GptOssExportError]) -> None:
    """Raise `error` where `folder` cannot be made: it exists, or its parent is no folder."""
    if folder.exists():
        raise error(f"{folder}: exists already; choose another name or remove it first")
    if not folder.absolute().parent.is_dir():
        raise error(f"{folder.absolute().parent}: not a folder; make it first")


@contextmanager
def replace_folder(folder: Path, error: type[GptOssExportError]) -> Iterator[Path]:
    """Yield a temporary sibling of `folder` to write into; it is renamed at the end, removed on failure.

    The sibling's name starts with a dot and ends in `PARTIAL`, which nothing loads from: what a killed process
    leaves behind is never taken for a whole folder, and can be removed.
    """
    check_new_folder(folder, error)
    parent = folder.absolute().parent
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PARTIAL, dir=parent))
    try:
        yield partial
        _open_up(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _open_up(folder: Path) -> None:
    """mkdtemp and safetensors make things private; give them the permissions that any new file gets."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:  # not a file that is linked from elsewhere
            path.chmod(0o666 & ~umask)
