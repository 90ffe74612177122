"""Where Inductor keeps what it has compiled. torch has no public name for it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLES = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"  # Inductor puts Triton's cache into its own


@contextmanager
def own_cache(name: str) -> Iterator[None]:
    """Inductor and Triton use a folder `name` of their own inside of Inductor's cache, and no other process does
    meanwhile: the same program of another build waits.

    Without it: processes that compile at the same time write the same files, and one of them may read a file that
    another one has not finished or has removed. Since: torch 2.11. It can go when Inductor writes each file whole or
    not at all.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process ends
        with _cache_at(folder):
            yield


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    saved = {variable: os.environ.pop(variable, None) for variable in _VARIABLES}
    os.environ[_VARIABLES[0]] = str(folder)
    try:
        yield
    finally:
        for variable, value in saved.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value
