"""A headless browser, a server that gives scripted answers, and the page in a tab."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_mock import Mock, serving
from page_tab import Tab

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for each module: while Playwright runs, this thread has an event loop that other tests must not find."""
    path = os.environ.get("GPTOSS_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser: install chromium, or name one with GPTOSS_BROWSER")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def mock() -> Iterator[Mock]:
    with serving() as mock:
        yield mock


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens the page of a server in a new tab. At the end, no tab has asked another origin or met an error."""
    tabs = []

    def open_tab(url: str, phone: bool = False, **context: Any) -> Tab:
        if phone:
            context = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True} | context
        tab = Tab(browser.new_context(**context), url)
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.context.close()
        assert tab.asked and {url for url in tab.asked if not url.startswith(tab.url + "/")} == set()
        assert tab.problems == []


@pytest.fixture
def tab(open_tab: Callable[..., Tab], mock: Mock) -> Tab:
    return open_tab(mock.url)
