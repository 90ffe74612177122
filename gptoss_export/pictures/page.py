"""What a page is made of, and the HTML of it. All text is escaped here, and here alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TypeAlias

from .._version import VERSION
from ..artifact.atomic_folder import replace_file
from ..shown_text import plain

_MANY_ROWS = 24  # of a table: from here on it scrolls on a screen


@dataclass(frozen=True)
class Alarm:
    """The text of a cell that the reader has to notice, such as FAIL."""

    text: str


Cell: TypeAlias = str | Alarm


@dataclass(frozen=True)
class PageTable:
    """A table, in a terminal and on a page.

    headings      of the columns; without any text in them there is no header
    numbers_from  the columns from this one on are aligned to the right
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    numbers_from: int | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of a page: `wide` and `narrow` are <svg> elements, for large and small screens."""

    name: str
    title: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Section:
    """A part of a page. text: paragraphs that say how to read its pictures."""

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[PageTable, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    title    what the page is about, such as the folder of an artifact
    command  what made it, such as `gptoss-export bench`
    facts    by name, the few that come first
    """

    title: str
    command: str
    facts: tuple[tuple[str, Cell], ...]
    sections: tuple[Section, ...]


def write_page(page: Page, file: Path) -> None:
    """Write the page whole or not at all. Raises OSError where it cannot be written."""
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    with replace_file(file) as partial:
        partial.write_text(html(page, written), encoding="utf-8")


def html(page: Page, written: str) -> str:
    """The page as one file. written: when."""
    folder = Path(__file__).parent
    return Template((folder / "skeleton.html").read_text(encoding="utf-8")).substitute(
        style=(folder / "skeleton.css").read_text(encoding="utf-8"),
        title=_escaped(page.title),
        command=_escaped(page.command),
        facts="\n".join(f"<div><dt>{_escaped(name)}</dt>{_cell(value, 'dd')}</div>" for name, value in page.facts),
        sections="\n".join(map(_section, page.sections)),
        version=_escaped(VERSION),
        written=_escaped(written),
    )


def _section(section: Section) -> str:
    lines = [
        f"<h2>{_escaped(section.title)}</h2>",
        *(f"<p>{_escaped(text)}</p>" for text in section.text),
        *map(_picture, section.pictures),
        *map(_table, section.tables),
    ]
    return _element("section", lines)


def _picture(picture: Picture) -> str:
    name = _escaped(picture.name)
    lines = [
        f'<figcaption id="{name}">{_escaped(picture.title)}</figcaption>',
        f'<div class="wide">{picture.wide}</div>',
        f'<div class="narrow">{picture.narrow}</div>',
    ]
    return _element("figure", lines, f' aria-labelledby="{name}"')


def _table(table: PageTable) -> str:
    number = table.numbers_from
    classes = ["" if number is None or index < number else ' class="number"' for index in range(len(table.headings))]
    lines = [f"<caption>{_escaped(table.title)}</caption>"] if table.title else []
    if any(table.headings):
        headings = zip(table.headings, classes, strict=True)
        lines.append(_row(f'<th scope="col"{kind}>{_escaped(heading)}</th>' for heading, kind in headings))
    for row in table.rows:
        lines.append(_row(_cell(value, "td", kind) for value, kind in zip(row, classes, strict=True)))
    many = " many" if len(table.rows) >= _MANY_ROWS else ""
    label = _escaped(table.title or "table")
    found = [
        # a region that scrolls has to be reached by keyboard
        f'<div class="table{many}" role="region" tabindex="0" aria-label="{label}">',
        _element("table", lines),
        "</div>",
        *([f'<p class="note">{_escaped(table.caption)}</p>'] if table.caption else []),
    ]
    return "\n".join(found)


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: Cell, tag: str, attributes: str = "") -> str:
    if isinstance(cell, Alarm):
        return f"<{tag}{attributes}><strong>{_escaped(cell.text)}</strong></{tag}>"
    return f"<{tag}{attributes}>{_escaped(cell)}</{tag}>"


def _element(tag: str, lines: Sequence[str], attributes: str = "") -> str:
    return "\n".join([f"<{tag}{attributes}>", *lines, f"</{tag}>"])


def _escaped(text: str) -> str:
    return escape(plain(text))
