"""A page as a browser reads it, by Python's own parser, and the marks of its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from gptoss_export.pictures.page import Picture

VOID = {"meta", "link", "br"}


@dataclass
class Shown:
    """A picture: its description, its text, and the attributes of its elements by tag."""

    description: str
    texts: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def across(self, text: str) -> list[float]:
        """Where a text stands, from left to right."""
        places = [float(attributes["x"]) for tag, attributes in self.elements if tag == "text"]
        return sorted(x for x, shown in zip(places, self.texts, strict=True) if shown == text)

    def bars(self, colour: str) -> list[tuple[float, float]]:
        """Left and right of each filled rectangle of a colour, from top to bottom."""
        found = []
        for tag, attributes in self.elements:
            if tag == "path" and f"fill: var(--{colour})" in attributes.get("style", ""):
                corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", attributes["d"])
                if len(corners) == 4:
                    across = [float(x) for x, _ in corners]
                    found.append((min(float(y) for _, y in corners), min(across), max(across)))
        return [(left, right) for _, left, right in sorted(found)]


class ParsedPage(HTMLParser):
    """Text, tables, pictures and all tags with their attributes. Every element that is opened has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.pictures: list[Shown] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "svg":
            self.pictures.append(Shown(attributes["aria-label"]))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "text":
            self.pictures[-1].texts.append("")
        if "svg" in self._open:
            self.pictures[-1].elements.append((tag, attributes))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text.append(data)
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data
        elif "text" in self._open:
            self.pictures[-1].texts[-1] += data

    @property
    def cells(self) -> set[str]:
        return {cell for table in self.tables for line in table for cell in line}


def wide(picture: Picture | None) -> Shown:
    """A picture as it is on a large screen."""
    assert picture is not None
    (shown,) = ParsedPage(picture.wide).pictures
    return shown


def parsed(file: Path) -> ParsedPage:
    return ParsedPage(file.read_text(encoding="utf-8"))
