"""Errors and signals to exit codes. The help of the command line lists the codes."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import ParamSpec

import click

from .plain import say
from .streams import ends_as_on_sigpipe

CHECK_FAILED = 1
BAD_USE = 2
BUG = 70  # not 1, which says that a check failed
SIGNAL = 128  # plus the number of the signal

_Parameters = ParamSpec("_Parameters")


def reports_errors(command: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Make a command end with a message and an exit code, whatever happens.

    SIGTERM and SIGHUP raise SystemExit in the command, so that temporary folders are removed.
    """

    @functools.wraps(command)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        from ..errors import GptOssExportError

        # torch warns about its own internals while it exports and compiles. A user can do nothing about it.
        warnings.filterwarnings("ignore", module=r"torch\.|copyreg")
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, _end)
        try:
            with ends_as_on_sigpipe():
                command(*args, **kwargs)
        except (GptOssExportError, OSError) as error:  # OSError: a full disk, a file that cannot be read
            say(f"error: {error}", err=True)
            sys.exit(BAD_USE)
        except KeyboardInterrupt:
            say("interrupted", err=True)
            sys.exit(SIGNAL + signal.SIGINT)
        except click.ClickException:  # click prints it and exits with 2
            raise
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and (package := missing_package(error)):
                say(f"error: package {package} is not installed; this command needs it", err=True)
                sys.exit(BAD_USE)
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
                say(f"error: {error}", err=True)
                sys.exit(BAD_USE)
            traceback.print_exc()
            sys.exit(BUG)

    return wrapped


def _end(number: int, _: object) -> None:
    sys.exit(SIGNAL + number)


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The package that an import did not find; None where it is a module of this project, which is a bug."""
    package = (error.name or "").partition(".")[0]
    return None if package in ("", __name__.partition(".")[0]) else package
