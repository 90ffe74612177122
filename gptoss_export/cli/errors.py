"""Errors and signals to exit codes. The help of the command line lists the codes."""

from __future__ import annotations

import errno
import functools
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, ParamSpec

import click

from .plain import one_message, say
from .streams import ends_as_on_sigpipe, silence_broken_streams

CHECK_FAILED = 1
BAD_USE = 2
BUG = 70  # not 1, which says that a check failed
SIGNAL = 128  # plus the number of the signal

_MORE_SPACE = "free some space, or write to another file system"
_ADVICE = {  # what to do about an error of the system
    errno.ENOSPC: _MORE_SPACE,
    errno.EDQUOT: _MORE_SPACE,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or write to another file system",
    errno.EROFS: "write to another file system",
    errno.ENOMEM: "close other programs, or raise the limit of memory (ulimit -v)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

_Parameters = ParamSpec("_Parameters")


def reports_errors(command: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Make a command end with a message and an exit code, whatever happens.

    SIGTERM and SIGHUP raise SystemExit in the command, so that temporary folders are removed.
    """

    @functools.wraps(command)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        from ..errors import GptOssExportError
        from ..machine_limits import machine_limit

        # torch warns about its own internals while it exports and compiles. A user can do nothing about it.
        warnings.filterwarnings("ignore", module=r"torch\.|copyreg")
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, _end)
        try:
            with ends_as_on_sigpipe():
                command(*args, **kwargs)
        except GptOssExportError as error:
            _end_with(str(error))
        except OSError as error:  # a full disk, a file that cannot be read
            end_with_os_error(error)
        except KeyboardInterrupt:
            say("interrupted", err=True)
            sys.exit(SIGNAL + signal.SIGINT)
        except click.ClickException:  # click prints it and exits with 2
            raise
        except Exception as error:
            if isinstance(error, ImportError) and (package := missing_package(error)):
                missing = isinstance(error, ModuleNotFoundError)
                problem = "is not installed" if missing else f"cannot be loaded ({error})"
                _end_with(f"package {package} {problem}; this command needs it")
            if (limit := machine_limit(error)) is not None:
                _end_with(str(limit))
            traceback.print_exc()
            sys.exit(BUG)

    return wrapped


def _end(number: int, _: object) -> None:
    sys.exit(SIGNAL + number)


def end_with_os_error(error: OSError) -> NoReturn:
    """End the command with what the system says, the file or stream that it concerns and what to do."""
    advice = _ADVICE.get(error.errno or 0, "")
    _end_with(f"{error}{advice and '; '}{advice}")


def _end_with(message: str) -> NoReturn:
    try:
        say(f"error: {message}", err=True)
    except BrokenPipeError:
        raise
    except OSError:  # stderr is what cannot be written
        pass
    silence_broken_streams()
    sys.exit(BAD_USE)


@contextmanager
def plain_usage_errors() -> Iterator[None]:
    """Let the errors of click quote a user's words as text that does not steer the terminal, and not without end."""
    try:
        yield
    except click.ClickException as error:
        text = one_message(error.format_message())
        error.format_message = lambda: text  # type: ignore[method-assign]
        raise


def missing_package(error: ImportError) -> str | None:
    """The package that an import did not find or could not load; None where it is a module of this project, which is a
    bug."""
    package = (error.name or "").partition(".")[0]
    return None if package in ("", __name__.partition(".")[0]) else package
