"""What a machine runs out of: disk, memory, threads. Each library reports it by an error of its own kind; here they
become OSError and MachineError."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GptOssExportError, MachineError

_FULL_DISK = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)),
    "File size limit exceeded",  # g++, which a signal ended
    "cannot write PCH file",  # g++, which does not say why
)
_KILLED = "Killed signal terminated program"  # g++, where the system took its memory
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # in the messages of libraries written in Rust
_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    _KILLED,
)
_LONGEST = 300  # characters of another library's message that are shown
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
    """In this context, each error that says that memory, threads or disk ran out is a MachineError. Also a decorator.

    OSErrors say it as they are. An error of this project is replaced where such an error is its cause.
    """
    try:
        yield
    except Exception as error:
        limit = machine_limit(error.__cause__ if isinstance(error, GptOssExportError) else error)
        if limit is None:
            raise
        raise limit from error


def check_threads(count: int) -> None:
    """Raise MachineError where this process cannot start `count` threads in addition to those it has.

    The OpenMP library that torch calls ends the process with exit code 1, without an error that Python could catch,
    where it cannot start its threads. So a process that has a limit tries first.
    """
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count)]
    started = []
    try:
        with reports_limits():
            for thread in threads:
                thread.start()
                started.append(thread)
    finally:
        done.set()
        for thread in started:
            thread.join()


def machine_limit(error: BaseException | None) -> MachineError | None:
    """The MachineError that stands for an error of Python, numpy, torch or another library; None for other errors."""
    if error is None or isinstance(error, GptOssExportError | OSError):
        return None
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return _out_of_memory(text)
    return limit_in(text)


def limit_in(text: str) -> MachineError | None:
    """The MachineError that the message of another library, or of a program that was called, stands for."""
    if any(part in text for part in _MEMORY):
        return _out_of_memory(text)
    if full := next((part for part in _FULL_DISK if part in text), None):  # a compiler that Inductor called
        folder = tempfile.gettempdir()
        return MachineError(f"{folder}: {full}; free some space there, or set TMPDIR to a folder with more")
    if any(part in text for part in _THREADS):
        return MachineError(f"a thread could not be started ({text}); raise the limit of processes (ulimit -u)")
    return None


def _out_of_memory(text: str) -> MachineError:
    said = f" ({text})" if 0 < len(text) <= _LONGEST else ""  # not what a compiler was called with
    return MachineError(
        f"too little memory{said}; end other programs that use it, or choose smaller sizes (--max-batch, --max-context)"
    )
