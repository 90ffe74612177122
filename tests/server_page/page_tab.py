"""A tab with the page: what a user does there, what is seen, and what the browser reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Locator


PATIENCE = 30_000  # milliseconds; the machine of a test may have much else to do


class Tab:
    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.asked: list[str] = []  # every address that the browser asked
        self.problems: list[str] = []  # what failed in the page, or was against its content security policy
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self.logged)
        self.page.goto(url)

    def logged(self, message: ConsoleMessage) -> None:
        # The browser logs each answer with an error status. The tests of errors look at what the page makes of it.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    @property
    def message(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message")

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.answer")

    @property
    def questions(self) -> Locator:
        return self.page.locator("article.user")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        self.message.fill(text)
        self.button("Send").click()

    def ended(self, count: int = 1) -> None:
        """Wait until there are `count` answers and none of them streams."""
        expect = self.expect()
        expect(self.answers).to_have_count(count)
        expect(self.page.locator("article.answer[aria-busy]")).to_have_count(0)

    def body(self, index: int = -1) -> Locator:
        """The text of an answer, without its reasoning and its buttons."""
        return self.answers.nth(index).locator(".body")

    def expect(self) -> Any:
        """Playwright's `expect`, which waits until something is seen."""
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        return expect

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)
