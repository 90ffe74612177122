"""What a machine runs out of: disk, memory, threads. Each library reports it by an error of its own kind; here they
become OSError and MachineError."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GptOssExportError, MachineError

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # in the messages of libraries written in Rust
_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc", "out of memory")
_THREADS = ("can't start new thread", "Resource temporarily unavailable")


@contextmanager
def writes(path: Path) -> Iterator[None]:
    """In this context, each failure to write the file or folder `path` is an OSError that names it.

    safetensors and tokenizers raise errors of their own, and Python's error of a full disk names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def reports_limits() -> Iterator[None]:
    """In this context, each error that says that memory or threads ran out is a MachineError. Also a decorator."""
    try:
        yield
    except Exception as error:
        if (limit := machine_limit(error)) is None:
            raise
        raise limit from error


def machine_limit(error: BaseException) -> MachineError | None:
    """The MachineError that stands for an error of Python, numpy, torch or another library; None for other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return _out_of_memory(text)
    if isinstance(error, GptOssExportError | OSError):
        return None
    if any(part in text for part in _MEMORY):
        return _out_of_memory(text)
    if any(part in text for part in _THREADS):
        return MachineError(f"a thread could not be started ({text}); raise the limit of processes (ulimit -u)")
    return None


def _out_of_memory(text: str) -> MachineError:
    said = f" ({text})" if text else ""
    return MachineError(
        f"too little memory{said}; end other programs that use it, or choose smaller sizes (--max-batch, --max-context)"
    )
