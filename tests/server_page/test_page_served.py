"""The page in a browser with `gptoss-export serve`: the artifact computes, and no answer is a test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from page_tab import Tab
from scripted import ANALYSIS, ANSWER, ENDLESS_ANSWER_BEGINS


@contextmanager
def served(artifact: Path, *options: object) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "gptoss_export", "serve", artifact, "--port", 0, "--json", *options]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_conversation(open_tab: Callable[..., Tab], scripted: Path, tmp_path: Path) -> None:
    """Two turns with reasoning, the figures of both sides, the API key, an error of the real server, and a reload."""
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with served(scripted, "--api-key-file", keys, "--model-name", "counts") as url:
        tab = open_tab(url)
        expect = tab.expect()
        tab.page.get_by_label("Key", exact=True).fill("secret")
        tab.button("Use this key").click()
        expect(tab.page.get_by_role("heading", name="counts")).to_be_visible()
        for count in (1, 2):
            tab.send("Count.")
            tab.ended(count)
        assert [tab.body(index).text_content() for index in range(2)] == [ANSWER, ANSWER]
        assert tab.answers.locator("details p").all_text_contents() == [ANALYSIS, ANALYSIS]
        expect(tab.page.locator("#answer-figures")).to_contain_text(" tokens/s")
        expect(tab.page.locator("#server-figures")).to_contain_text("0 running · 0 waiting")
        expect(tab.page.locator("#server-figures")).to_contain_text("KV pages")
        tab.send("long " * 5000)
        tab.ended(3)
        expect(tab.answers.get_by_role("alert")).to_contain_text("(status 400)")
        tab.button("Edit").click()
        tab.send("Count again.")
        tab.ended(3)
        expect(tab.body()).to_have_text(ANSWER)
        tab.page.reload()
        tab.ended(3)
        assert [tab.body(index).text_content() for index in range(3)] == [ANSWER] * 3


def test_a_stop(open_tab: Callable[..., Tab], endless: Path) -> None:
    """The server ends an answer that is stopped, and the next one begins."""
    with served(endless) as url:
        tab = open_tab(url)
        expect = tab.expect()
        for count in (1, 2):
            tab.send("Count.")
            expect(tab.body()).to_contain_text(ENDLESS_ANSWER_BEGINS)
            tab.button("Stop").click()
            tab.ended(count)
            expect(tab.answers.nth(count - 1).get_by_text("Stopped.")).to_be_visible()
            expect(tab.page.locator("#server-figures")).to_contain_text("0 running · 0 waiting")
