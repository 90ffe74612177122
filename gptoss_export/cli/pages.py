"""--html: a page with pictures beside what a command prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .params import check_new_file
from .plain import say
from .tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

    from ..pictures.page import Page, PageTable

html_option = click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write FILE, a web page with pictures and the tables (needs the extra pictures).",
)


def check_page(html: Path | None, *inputs: Path | None) -> None:
    """Raise UsageError where the page of --html cannot be made, before anything is computed. inputs: the folders that
    the command reads."""
    from ..pictures.library import check_library

    check_new_file("--html", html, *inputs)
    check_library("--html", html)


def write(page: Page, html: Path) -> None:
    """Write the page of --html, and say so."""
    from ..pictures.page import write_page

    write_page(page, html)
    say(f"written: {html}", err=True)


def terminal_table(table: PageTable) -> Table:
    """A table of a page, for the terminal."""
    from rich.text import Text

    from ..pictures.page import Alarm

    rows = ([Text(cell.text, "bold red") if isinstance(cell, Alarm) else cell for cell in row] for row in table.rows)
    return make_table(table.headings, rows, table.title, table.caption, table.numbers_from)
