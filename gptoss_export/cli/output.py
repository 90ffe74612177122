"""What all commands share: errors to exit codes, progress on stderr, a table or JSON on stdout."""

from __future__ import annotations

import functools
import io
import json
import math
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from ..progress import Steps

BAD_USE = 2
CHECK_FAILED = 1
BUG = 70  # not 1, which says that a check failed

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
hashes_option = click.option(
    "--verify-hashes/--no-verify-hashes", default=True, show_default=True, help="Compare every file's sha256 on load."
)
artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the project's errors into a message and exit code 2, and a termination into a clean stop."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from ..errors import GptOssExportError

        # torch warns about its own internals while it exports and compiles; a user can do nothing about it.
        warnings.filterwarnings("ignore", module=r"torch\.|copyreg")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            command(*args, **kwargs)
        except (GptOssExportError, OSError) as error:  # a disk that is full, a file that cannot be read
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_USE)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
                click.echo(f"error: {error}", err=True)
                sys.exit(BAD_USE)
            traceback.print_exc()
            sys.exit(BUG)

    return wrapped


class Integers(click.ParamType):
    """Whole numbers separated by commas or white space."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return [int(word) for word in value.replace(",", " ").split()]
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers, such as 1,2,3", param, ctx)


@contextmanager
def progress() -> Iterator[Steps]:
    """Steps that are shown on stderr: a spinner on a terminal, a line each when done."""
    from rich.console import Console

    from ..progress import Steps

    console = Console(stderr=True)
    with console.status("") as status:

        def show(name: str, seconds: float | None) -> None:
            if seconds is None:
                status.update(name)
            else:
                console.print(f"[dim]{seconds:8.2f} s[/dim]  {name}", highlight=False)

        yield Steps(show)


def print_json(value: Any) -> None:
    """One object on one line; numbers that JSON does not have become null."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_parent(option: str, path: Path | None) -> None:
    """Raise UsageError where a file that an option names cannot be made."""
    from ..errors import UsageError

    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(f"{option} {path}: expected a file in a folder that exists")


def print_table(*tables: Table, html: Path | None = None, quiet: bool = False) -> None:
    """Print to stdout unless `quiet`; and write the same as a page to `html`."""
    from rich.console import Console

    file = io.StringIO() if quiet else None
    console = Console(record=html is not None, file=file, width=None if sys.stdout.isatty() else 150)
    for table in tables:
        console.print(table)
    if html is not None:
        console.save_html(str(html))
        click.echo(f"written: {html}", err=True)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
