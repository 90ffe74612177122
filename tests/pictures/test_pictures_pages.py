"""Every page: one file, nothing from elsewhere, text escaped, both themes, the numbers of its tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_pages import ENGINES, PLUGINS, page_of_bench, page_of_inspect, page_of_verify
from parsed_page import ParsedPage, parsed
from picture_facts import HOSTILE, bench_report, manifest, verify_report, with_nan

from gptoss_export.cli.pages import terminal_table
from gptoss_export.pictures.page import Alarm, Page, PageTable, Section, html, write_page
from gptoss_export.pictures.palette import Colour
from gptoss_export.shown_text import plain

PAGES: dict[str, Callable[[], Page]] = {
    "bench": lambda: page_of_bench(bench_report()),
    "bench of one": lambda: page_of_bench(bench_report([1], [1024], [], served=False)),
    "bench of many": lambda: page_of_bench(bench_report(contexts=range(1024, 1124, 10))),
    "bench of nothing": lambda: page_of_bench(replace(bench_report([], [], []), memory=0)),
    "verify": lambda: page_of_verify(verify_report()),
    "verify float32": lambda: page_of_verify(verify_report(rounded=False, compared=False, ties=False)),
    "verify of one": lambda: page_of_verify(verify_report([1], compared=False)),
    "verify with NaN": lambda: page_of_verify(with_nan(verify_report(), 1)),
    "verify without margins": lambda: page_of_verify(replace(verify_report(), margins=())),
    "verify of nothing": lambda: page_of_verify(replace(verify_report(), rows=[])),
    "inspect": lambda: page_of_inspect(manifest(), (ENGINES, PLUGINS)),
    "inspect 120b": lambda: page_of_inspect(manifest("120b", (1,), 131_072)),
    "inspect of one layer": lambda: page_of_inspect(manifest(layers=1, context=1)),
    "inspect of 200 layers": lambda: page_of_inspect(manifest(layers=200)),
    "hostile bench": lambda: page_of_bench(
        bench_report(name=HOSTILE, kernels=[(HOSTILE, 1, 3.0), (HOSTILE + "2", 2, 1.0)])
    ),
    "hostile verify": lambda: page_of_verify(
        replace(verify_report(name=HOSTILE), oracle=HOSTILE, compare_with=HOSTILE, dtype=HOSTILE)
    ),
    "hostile inspect": lambda: page_of_inspect(
        replace(manifest(), source=HOSTILE, archs=(HOSTILE,), versions={"torch": HOSTILE, HOSTILE: "1"}),
        (replace(ENGINES, title=HOSTILE, rows=[(HOSTILE, HOSTILE, "12", HOSTILE)]),),
        HOSTILE,
    ),
}
TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer"),
    *("h1", "h2", "p", "dl", "div", "dt", "dd", "figure", "figcaption", "table", "caption", "tr", "th", "td", "strong"),
    *("svg", "g", "path", "use", "text", "defs", "clippath", "rect"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "rel", "class", "id", "role", "tabindex", "scope"),
    *("aria-label", "aria-labelledby", "style", "viewbox", "d", "x", "y", "width", "height", "transform"),
    *("href", "clip-path"),
}


@pytest.fixture(scope="module", params=PAGES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    page = PAGES[request.param]()
    file = tmp_path_factory.mktemp("pages") / "page.html"
    write_page(page, file)
    return page, file


def test_a_page_is_one_file_with_nothing_from_elsewhere(made: tuple[Page, Path]) -> None:
    page = parsed(made[1])
    assert {tag for tag, _ in page.tags} <= TAGS
    assert {name for _, attributes in page.tags for name in attributes} <= ATTRIBUTES
    assert page.comments == []
    for tag, attributes in page.tags:
        for name in ("href", "clip-path"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "url(#")) or (tag, value) == ("link", "data:,")
        assert "url(" not in attributes.get("style", "")
    text = made[1].read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.split("; ")[0] == "default-src 'none'" and "script" not in policy
    assert made[1].stat().st_size < 600_000
    assert list(made[1].parent.iterdir()) == [made[1]]


def test_every_name_of_a_page_is_unique_and_found(made: tuple[Page, Path]) -> None:
    tags = parsed(made[1]).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(names)) == len(names)
    used = [attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes]
    for _, attributes in tags:
        used += re.findall(r"#([\w.-]+)", attributes.get("href", "") + attributes.get("clip-path", ""))
    assert set(used) <= set(names)


def test_every_picture_has_two_sizes_a_name_and_a_description(made: tuple[Page, Path]) -> None:
    page = parsed(made[1])
    expected = sum(len(section.pictures) for section in made[0].sections)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 2 * expected == 2 * len([tag for tag, _ in page.tags if tag == "figure"])
    for wide, narrow in zip(pictures[::2], pictures[1::2], strict=True):
        assert wide["role"] == narrow["role"] == "img"
        assert wide["aria-label"] == narrow["aria-label"] and len(wide["aria-label"]) > 20
        assert [float(picture["viewbox"].split()[2]) for picture in (wide, narrow)] == [760, 340]
    for picture in page.pictures:
        assert picture.texts and all(text.strip() for text in picture.texts)


def test_pictures_have_only_colours_that_follow_the_theme(made: tuple[Page, Path]) -> None:
    for picture in parsed(made[1]).pictures:
        for tag, attributes in picture.elements:
            style = attributes.get("style", "")
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb", style), style
            assert {"fill", "stroke", "color"}.isdisjoint(attributes)
            if tag == "text":
                assert "fill: var(--" in style and "font-family" not in style


def test_the_file_has_every_cell_of_every_table(made: tuple[Page, Path]) -> None:
    page = parsed(made[1])
    tables = [table for section in made[0].sections for table in section.tables]
    assert len(page.tables) == len(tables)
    for found, table in zip(page.tables, tables, strict=True):
        expected = [list(table.headings)] if any(table.headings) else []
        expected += [[cell.text if isinstance(cell, Alarm) else cell for cell in row] for row in table.rows]
        assert found == [[plain(cell) for cell in row] for row in expected]
    shown = " ".join(page.text)
    for name, value in made[0].facts:
        assert plain(name) in shown and plain(value.text if isinstance(value, Alarm) else value) in shown


def test_foreign_text_is_text(made: tuple[Page, Path]) -> None:
    data = made[1].read_bytes()
    assert not re.search(rb"[\x00-\x08\x0b-\x1f]", data)
    if HOSTILE in made[0].title:
        page = parsed(made[1])
        assert plain(HOSTILE) in page.text and r"\x1b[31m \u202e \ud800" in plain(HOSTILE)
        assert b"<script" not in data


def variables(style: str, start: str) -> dict[str, str]:
    """The colours that the first rule after `start` sets."""
    rule = style[style.index(start) :].partition("}")[0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", rule))


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("start", [":root", "prefers-color-scheme: dark"])
def test_each_theme_has_every_colour_with_enough_contrast(start: str) -> None:
    """4.5 to 1 is what WCAG 2.2 asks of text; the lines of a grid carry nothing."""
    found = variables(html(Page("t", "c", (), ()), ""), start)
    assert found.keys() == {colour.name.lower() for colour in Colour}
    paper = luminance(found["paper"])
    for name in found.keys() - {"paper", "grid"}:
        low, high = sorted((paper, luminance(found[name])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
    if start == ":root":
        assert found == {colour.name.lower(): colour.value for colour in Colour}


def test_the_same_facts_give_the_same_page() -> None:
    first, second = (html(page_of_verify(verify_report()), "now") for _ in range(2))
    assert first == second


def test_a_cell_to_notice_is_marked_on_the_page_and_in_the_terminal() -> None:
    table = PageTable("t", ("a", "b"), (("x", Alarm("FAIL")),), "caption", numbers_from=1)
    page = html(Page("t", "c", (("result", Alarm("FAIL")),), (Section("s", tables=(table,)),)), "")
    assert '<td class="number"><strong>FAIL</strong></td>' in page and "<dd><strong>FAIL</strong></dd>" in page
    assert '<p class="note">caption</p>' in page
    shown = terminal_table(table)
    assert [column.justify for column in shown.columns] == ["left", "right"]
    assert str(shown.caption) == "caption" and str(shown.title) == "t"


def test_a_table_that_scrolls_can_be_reached_by_keyboard() -> None:
    rows = tuple((str(index),) for index in range(30))
    page = ParsedPage(html(Page("t", "c", (), (Section("s", tables=(PageTable("many", ("n",), rows),)),)), ""))
    region = next(attributes for tag, attributes in page.tags if attributes.get("role") == "region")
    assert region == {"class": "table many", "role": "region", "tabindex": "0", "aria-label": "many"}


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")

    def fail(self: Path, text: str, encoding: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        write_page(Page("t", "c", (), ()), file)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
