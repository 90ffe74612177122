"""What a command prints: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..shown_text import plain
from .streams import new_console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_WIDTH_OF_FILES = 150  # columns, where stdout is no terminal


def print_json(value: Any) -> None:
    """Print one object on one line. Numbers that JSON does not have become null."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def make_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    title: str = "",
    caption: str = "",
    numbers_from: int | None = None,
) -> Table:
    """A table of rich. Strings are shown as they are: neither rich nor the terminal reads them.

    numbers_from: the columns from this one on are aligned to the right. Without any heading there is no header.
    """
    from rich.table import Table
    from rich.text import Text

    def text(value: str | Text) -> Text:
        return Text(plain(value)) if isinstance(value, str) else value

    table = Table(
        title=Text(plain(title), "italic") if title else None,
        caption=Text(plain(caption), "dim italic") if caption else None,
        show_header=any(headings),
    )
    for index, heading in enumerate(headings):
        right = numbers_from is not None and index >= numbers_from
        table.add_column(text(heading), justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(text, row))
    return table


def print_tables(tables: Iterable[Table]) -> None:
    """Print to stdout."""
    console = new_console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
    for table in tables:
        console.print(table)


def readable(value: Any) -> str:
    """The value of an option for people."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
