"""What all commands share: errors to exit codes, progress on stderr, a table or JSON on stdout."""

from __future__ import annotations

import functools
import json
import signal
import sys
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
        except GptOssExportError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(BAD_USE)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)

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
    click.echo(json.dumps(value, allow_nan=False, default=str))


def print_table(*tables: Table, html: Path | None = None) -> None:
    """Print to stdout; and write the same as a page to `html`."""
    from rich.console import Console

    console = Console(record=html is not None, width=None if sys.stdout.isatty() else 140)
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
