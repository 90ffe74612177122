"""A picture as a part of a page, and what is drawn whatever the settings of matplotlib and the names are."""

from __future__ import annotations

import subprocess
import sys
import warnings

import matplotlib
import pytest
from parsed_page import ParsedPage
from picture_facts import HOSTILE

from gptoss_export.pictures.bars import Bar, Part, draw_bars
from gptoss_export.pictures.inline_svg import inline
from gptoss_export.pictures.keys import Key, Shape, draw_keys, keys_height
from gptoss_export.pictures.library import library_settings
from gptoss_export.pictures.page import Picture
from gptoss_export.pictures.palette import Colour
from gptoss_export.pictures.sheet import NARROW, WIDE, Paper, Sheet, fitted, make_picture, one_line, text_width

LONG = "a kernel with a name that is much longer than a picture is wide " * 3


def bars_of(*bars: Bar) -> Picture:
    return make_picture("name", "title", "a description", lambda paper: draw_bars(paper, bars, "unit"))


def test_names_get_the_prefix_and_what_is_of_a_file_goes() -> None:
    svg = """<?xml version="1.0"?>
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt" viewBox="0 0 9 9.12345" xmlns="http://www.w3.org/2000/svg">
<metadata>x</metadata><defs><style type="text/css">*{a: b}</style></defs>
<g id="unused"><g><defs><path id="m1" d="M 0.123456 -1.99999"/></defs>
<use xlink:href="#m1" x="1" style="fill: #2a64c5"/><use xlink:href="#m1" x="2" style="fill: #2a64c5"/></g></g>
<g clip-path="url(#c1)"><use xlink:href="#m1" style="stroke: #c62828"/>
<use xlink:href="#m1" style="stroke: #c62828"/></g>
<text style="font: 700 10px 'DejaVu Sans'; fill: #1b1f24" transform="rotate(-0 1 2)">a&lt;b</text>
<defs><clipPath id="c1"><rect x="1"/></clipPath></defs></svg>"""
    found = inline(svg, "p-", 'says "x"')
    assert found == (
        '<svg viewBox="0 0 9 9.12" role="img" aria-label="says &quot;x&quot;"><defs />'
        '<defs><path id="p-m1" d="M 0.12 -2" /></defs>'
        '<use href="#p-m1" x="1" style="fill: var(--blue)" /><use href="#p-m1" x="2" style="fill: var(--blue)" />'
        '<g clip-path="url(#p-c1)" style="stroke: var(--red)"><use href="#p-m1" /><use href="#p-m1" /></g>'
        '<text style="font-weight: 700; font-size: 10px; fill: var(--ink)">a&lt;b</text>'
        '<defs><clipPath id="p-c1"><rect x="1" /></clipPath></defs></svg>'
    )


def test_settings_of_the_user_change_nothing_and_are_kept() -> None:
    bar = Bar("n", (Part(1.0),), "1")
    expected = bars_of(bar)
    with matplotlib.rc_context():
        matplotlib.rcParams.update(
            {"font.size": 40, "svg.fonttype": "path", "axes.facecolor": "red", "text.usetex": True}
        )
        assert bars_of(bar) == expected
        assert matplotlib.rcParams["font.size"] == 40 and matplotlib.rcParams["text.usetex"]


def test_hostile_names_are_text_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = bars_of(Bar(HOSTILE, (Part(1.0),), HOSTILE))
    (shown,) = ParsedPage(picture.wide).pictures
    assert one_line(HOSTILE) in shown.texts


@pytest.mark.parametrize("paper", [WIDE, NARROW])
def test_all_text_is_inside_of_the_picture(paper: Paper) -> None:
    bars = [
        Bar(LONG, (Part(3.0),), "3 units"),
        Bar("short", (Part(0.001),), "a label of some length, 100.0%", mark=7.0),
    ]
    picture = bars_of(*bars)
    (shown,) = ParsedPage(picture.narrow if paper.narrow else picture.wide).pictures
    texts = [attributes for tag, attributes in shown.elements if tag == "text"]
    for attributes, text in zip(texts, shown.texts, strict=True):
        width, x = text_width(text), float(attributes["x"])
        anchor = attributes["style"].partition("text-anchor: ")[2].partition(";")[0]
        left = {"": x, "start": x, "middle": x - width / 2, "end": x - width}[anchor]
        assert left >= -0.5 and left + width <= paper.width + 0.5, text
    assert any("…" in text for text in shown.texts)


def test_bars_of_nothing() -> None:
    (shown,) = ParsedPage(bars_of(Bar("none", (), "0"), Bar("zero", (Part(0.0),), "0")).wide).pictures
    assert {"none", "zero", "0"} <= set(shown.texts)


def test_long_names_keep_their_ends() -> None:
    assert fitted("short", 200) == "short"
    text = fitted("first " + "x" * 300 + " last", 100)
    assert text.startswith("first") and text.endswith("last") and "…" in text and text_width(text) <= 100
    with library_settings():
        assert text_width(fitted("日本" * 100, 50)) <= 50


def test_keys_go_on_in_another_line_where_they_do_not_fit() -> None:
    keys = [Key(f"what the colour number {index} stands for", Colour.BLUE, shape) for index, shape in enumerate(Shape)]
    assert keys_height(NARROW, keys) == 126 and keys_height(WIDE, keys) == 46 and keys_height(WIDE, []) == 2

    def draw(paper: Paper) -> Sheet:
        sheet = Sheet(paper, keys_height(paper, keys))
        draw_keys(sheet, paper, keys)
        return sheet

    (shown,) = ParsedPage(make_picture("n", "t", "d", draw).narrow).pictures
    assert shown.texts == [key.text for key in keys]
    heights = [float(attributes["y"]) for tag, attributes in shown.elements if tag == "text"]
    assert heights == sorted(set(heights))


def test_matplotlib_is_imported_when_a_picture_is_made_and_not_before() -> None:
    code = """
import sys, pkgutil, importlib, gptoss_export.pictures as room
for module in pkgutil.iter_modules(room.__path__):
    importlib.import_module(f"{room.__name__}.{module.name}")
assert not {"matplotlib", "numpy", "torch", "click", "rich"} & set(sys.modules), sys.modules.keys()
from gptoss_export.pictures.startup import startup_picture
startup_picture({"start": 1.0})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
