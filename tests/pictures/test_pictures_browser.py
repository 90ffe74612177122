"""The pages in Chromium: both themes, a desk, a telephone and paper. Nothing is asked of a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_pages import ENGINES, page_of_bench, page_of_inspect, page_of_verify
from picture_facts import bench_report, manifest, verify_report

from gptoss_export.pictures.page import write_page

BROWSER = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAGES = {
    "bench": lambda: page_of_bench(bench_report()),
    "verify": lambda: page_of_verify(verify_report()),
    "inspect": lambda: page_of_inspect(manifest(), (ENGINES,)),
}
DESK, TELEPHONE = 1000, 360


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no browser: chromium is not installed")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module", params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("browser") / f"{request.param}.html"
    write_page(PAGES[request.param](), written)
    return written


class Opened:
    """A page in the browser, and what it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, scheme: str, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.messages: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url, file))
        self.page.goto(file.as_uri())

    def _request(self, address: str, file: Path) -> None:
        if address not in (file.as_uri(), "data:,"):
            self.messages.append(address)

    def colour(self, selector: str, name: str) -> str:
        """A computed colour of the first element that is shown."""
        code = "(all, name) => getComputedStyle(all.find(e => e.getClientRects().length))[name]"
        return str(self.page.eval_on_selector_all(selector, code, name))


@pytest.mark.parametrize("width", [DESK, TELEPHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_as_it_is_seen(browser: Any, file: Path, scheme: str, width: int) -> None:
    opened = Opened(browser, file, scheme, width)
    page = opened.page
    assert opened.messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = {"light": "rgb(253, 253, 254)", "dark": "rgb(20, 23, 28)"}[scheme]
    ink = {"light": "rgb(27, 31, 36)", "dark": "rgb(231, 234, 238)"}[scheme]
    assert opened.colour("html", "backgroundColor") == paper and opened.colour("h1", "color") == ink
    texts = page.eval_on_selector_all("svg text", "all => [...new Set(all.map(e => getComputedStyle(e).fill))]")
    assert ink in texts and paper not in texts
    shown = page.eval_on_selector_all("svg", "all => all.filter(e => e.getClientRects().length).length")
    assert shown == len(page.query_selector_all("figure"))
    sizes = page.eval_on_selector_all(
        "svg text", "all => all.filter(e => e.getClientRects().length).map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 9  # pixels; a picture is not made smaller than it was drawn
    assert len(set(pixels(page))) > 3
    page.close()


def pixels(page: Any) -> bytes:
    """A screenshot of the first picture that is seen. It is no single colour."""
    figure = page.query_selector("figure")
    return bytes(figure.screenshot())


def test_every_text_of_a_picture_is_inside_of_it(browser: Any, file: Path) -> None:
    for width in (DESK, TELEPHONE):
        page = Opened(browser, file, "light", width).page
        outside = page.eval_on_selector_all(
            "svg text",
            """all => all.filter(e => e.getClientRects().length).filter(e => {
                const text = e.getBoundingClientRect(), picture = e.closest('svg').getBoundingClientRect()
                return text.left < picture.left - 2 || text.right > picture.right + 2
                    || text.top < picture.top - 4 || text.bottom > picture.bottom + 4
            }).map(e => e.textContent)""",
        )
        assert outside == []
        page.close()


def test_text_of_a_picture_can_be_selected(browser: Any, file: Path) -> None:
    page = Opened(browser, file, "light", DESK).page
    text = page.evaluate(
        """() => {
            const element = [...document.querySelectorAll('svg text')].find(e => e.getClientRects().length)
            getSelection().selectAllChildren(element)
            return [getSelection().toString(), element.textContent]
        }"""
    )
    assert text[0] == text[1] != ""
    page.close()


def test_paper_is_light_and_holds_whole_tables(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, "dark", DESK)
    opened.page.emulate_media(media="print")
    assert opened.colour("html", "backgroundColor") == "rgb(253, 253, 254)"
    cut = opened.page.eval_on_selector_all(
        ".table", "all => all.filter(e => e.scrollHeight > e.clientHeight + 1).length"
    )
    assert cut == 0
    wide = opened.page.eval_on_selector_all(".narrow", "all => all.filter(e => e.getClientRects().length).length")
    assert wide == 0
    assert len(opened.page.pdf()) > 10_000
    opened.page.close()
