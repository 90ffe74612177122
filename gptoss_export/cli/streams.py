"""stdout and stderr: text that they cannot show, and readers that are gone."""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_any_text() -> None:
    """Let stdout and stderr take every character.

    A stream in ASCII becomes UTF-8: it is that of a locale that says nothing. Another encoding stays, and what it does
    not have becomes a question mark. A stream that the caller closed (`>&-`) swallows everything. Errors name the
    stream, and text that was only written in part is one.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="replace")
            if _descriptor(stream) == descriptor:
                setattr(sys, name, _whole(stream, name))


class _Named(io.FileIO):
    """A file whose errors name it as a stream of this process."""

    def __init__(self, descriptor: int, stream: str) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._stream = stream

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = self._stream
            raise


def _whole(stream: io.TextIOWrapper, name: str) -> io.TextIOWrapper:
    """The same stream with a buffer, and with errors that name it.

    Without a buffer, which PYTHONUNBUFFERED asks for, Python drops what does not fit a disk, without an error.
    """
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Named(stream.fileno(), name)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _descriptor(stream: Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory, or a closed one
        return None


@contextmanager
def ends_as_on_sigpipe() -> Iterator[None]:
    """End as SIGPIPE ends a command, silently, where nobody reads stdout or stderr any more.

    The signal itself would leave temporary folders behind. A broken pipe to another process is an error as any other.
    """
    try:
        yield
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]
        if not unread:
            raise
        _silence(unread)
        sys.exit(128 + signal.SIGPIPE)


def silence_broken_streams() -> None:
    """Let stdout and stderr swallow everything from now on where they cannot be written, as on a full disk.

    Without this, Python fails when it ends, since it writes what is left.
    """
    broken = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            broken.append(stream)
    _silence(broken)


def _silence(streams: Iterable[Any]) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(devnull, stream.fileno())


def new_console(**options: Any) -> Console:
    """A console of rich that raises BrokenPipeError, where rich itself ends the process with exit code 1."""
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this where it has caught the error

    return Raising(**options)


def _reader_is_gone(stream: Any) -> bool:
    descriptor = _descriptor(stream)
    if descriptor is None:
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
