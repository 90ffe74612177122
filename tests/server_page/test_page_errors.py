"""The page in a browser: a stop, and everything that goes wrong. What came is kept, the server's reason is shown."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from page_mock import PATIENCE, Mock, Part, calls, finishes, refuses, says, serving, thinks
from page_tab import Tab

LOST = "The connection was lost before the answer was complete."


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop(tab: Tab, mock: Mock, how: str) -> None:
    """What came stays and is a part of the conversation. The connection ends, so that the server can stop too."""
    expect = tab.expect()
    mock.will(thinks("Hm."), says("One, two, "), threading.Event(), says("three."), finishes())
    tab.send("Count.")
    expect(tab.body()).to_have_text("One, two,")
    if how == "button":
        tab.button("Stop").click()
    else:
        tab.page.keyboard.press("Escape")
    assert mock.client_gone.wait(PATIENCE)
    tab.ended()
    expect(tab.answers.get_by_text("Stopped.")).to_be_visible()
    expect(tab.body()).to_have_text("One, two,")
    expect(tab.answers.get_by_role("alert")).to_have_count(0)
    mock.will(says("three."), finishes())
    tab.send("Go on.")
    tab.ended(2)
    assert [message["content"] for message in mock.chats()[1]["messages"]] == ["Count.", "One, two, ", "Go on."]


def test_stop_before_the_answer(tab: Tab, mock: Mock) -> None:
    """Nothing came: the next request has two messages of the user."""
    mock.will(threading.Event())
    tab.send("Hello?")
    tab.expect()(tab.button("Stop")).to_be_visible()
    tab.page.wait_for_timeout(200)
    tab.button("Stop").click()
    tab.ended()
    mock.will(says("Hi."), finishes())
    tab.send("Anybody?")
    tab.ended(2)
    assert [message["role"] for message in mock.chats()[-1]["messages"]] == ["user", "user"]


def test_stop_in_a_tool_call(tab: Tab, mock: Mock) -> None:
    """Half a call is shown. It asks for no result and is not sent."""
    mock.will(calls(0, "get_weather", '{"city": "Os', "call_a"), threading.Event())
    tab.send("Weather?")
    tab.expect()(tab.answers.locator(".call pre")).to_have_text('{"city": "Os')
    tab.button("Stop").click()
    tab.ended()
    assert tab.page.locator(".results").count() == 0
    mock.will(says("Yes."), finishes())
    tab.send("Still there?")
    tab.ended(2)
    assert [message["role"] for message in mock.chats()[1]["messages"]] == ["user", "user"]


REFUSALS = [
    (
        429,
        refuses("128 requests wait already."),
        {"Retry-After": "7"},
        ["128 requests wait already.", "Try again in 7 s."],
    ),
    (500, refuses("The engine failed: out of pages."), {}, ["The engine failed: out of pages.", "status 500"]),
    (400, refuses("messages: found 9000 tokens, expected at most 4352."), {}, ["found 9000 tokens", "status 400"]),
    (502, "<html>Bad <b>gateway</b></html>", {}, ["<html>Bad <b>gateway</b></html>", "status 502"]),
    (503, "", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, ["The server gave no reason.", "status 503"]),
]


@pytest.mark.parametrize(("status", "body", "headers", "said"), REFUSALS)
def test_refused(tab: Tab, mock: Mock, status: int, body: dict | str, headers: dict[str, str], said: list[str]) -> None:
    """The server's message is shown in place, and its retry asks the same again."""
    expect = tab.expect()
    mock.will_refuse(status, body, headers)
    tab.send("Hi")
    tab.ended()
    shown = tab.answers.get_by_role("alert").text_content()
    assert all(part in shown for part in said)
    mock.will(says("Hello."), finishes())
    tab.button("Try again").click()
    expect(tab.body()).to_have_text("Hello.")
    tab.ended()
    expect(tab.page.get_by_role("alert")).to_have_count(0)
    first, second = mock.chats()
    assert first == second


BREAKS: list[tuple[list[Part], str]] = [
    (["lost"], LOST),
    (["end"], LOST),
    ([refuses("The engine stopped.")], "The engine stopped."),
]


@pytest.mark.parametrize(("parts", "said"), BREAKS, ids=["lost", "too early", "error event"])
def test_an_answer_that_breaks_off(tab: Tab, mock: Mock, parts: list[Part], said: str) -> None:
    expect = tab.expect()
    gate = threading.Event()
    mock.will(says("It is "), gate, *parts)
    tab.send("What time is it?")
    expect(tab.body()).to_have_text("It is")
    gate.set()
    expect(tab.answers.get_by_role("alert")).to_have_text(said)
    expect(tab.body()).to_have_text("It is")
    tab.page.reload()
    expect(tab.answers.get_by_role("alert")).to_have_text(said)
    mock.will(says("It is noon."), finishes())
    tab.button("Try again").click()
    tab.ended()
    expect(tab.body()).to_have_text("It is noon.")


def test_no_server(open_tab: Callable[..., Tab]) -> None:
    with serving() as mock:
        tab = open_tab(mock.url)
        tab.expect()(tab.page.get_by_role("heading", name="gpt-oss-mock")).to_be_visible()
    tab.send("Hi")
    tab.ended()
    tab.expect()(tab.answers.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")
    tab.expect()(tab.page.get_by_text("server not reachable")).to_be_visible()


def test_api_key(open_tab: Callable[..., Tab], mock: Mock) -> None:
    """Asked for when the server wants one, again when it is wrong, and kept in this tab alone."""
    mock.api_key = "secret"
    tab = open_tab(mock.url)
    expect, dialog = tab.expect(), tab.page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("This server wants an API key.")
    tab.page.get_by_label("Key", exact=True).fill("wrong")
    tab.button("Use this key").click()
    expect(dialog).to_contain_text("The server refused this key.")
    tab.button("Cancel").click()
    tab.send("Hi")
    tab.ended()
    expect(tab.page.locator(".error")).to_contain_text("Incorrect API key. (status 401)")
    expect(dialog).to_contain_text("The server refused this key.")
    mock.will(says("Hello."), finishes())
    tab.page.get_by_label("Key", exact=True).fill("secret")
    tab.page.keyboard.press("Enter")
    expect(tab.body()).to_have_text("Hello.")
    tab.ended()
    tab.page.reload()
    expect(tab.page.get_by_role("heading", name="gpt-oss-mock")).to_be_visible()
    mock.will(says("Again."), finishes())
    tab.send("And now?")
    tab.ended(2)
    assert {received.authorization for received in mock.received[-2:]} == {"Bearer secret"}
    assert tab.evaluate("JSON.stringify(localStorage)") == "{}"
    assert "secret" not in tab.page.content()


@pytest.mark.parametrize("key", ["schl\u00fcssel", "\u20ac-key", "two words", "   "])
def test_a_key_that_no_request_can_hold(open_tab: Callable[..., Tab], mock: Mock, key: str) -> None:
    """It is refused before it is kept: with it, the browser sends no request at all."""
    mock.api_key = "secret"
    tab = open_tab(mock.url)
    expect, dialog = tab.expect(), tab.page.get_by_role("dialog", name="API key")
    tab.page.get_by_label("Key", exact=True).fill(key)
    tab.button("Use this key").click()
    expect(dialog.get_by_role("alert")).to_have_text("A key has letters, digits and signs of ASCII, and no spaces.")
    assert tab.evaluate("sessionStorage.getItem('gptoss-export api key')") is None
    assert {received.authorization for received in mock.received} == {None}
    tab.page.get_by_label("Key", exact=True).fill(" secret ")
    tab.button("Use this key").click()
    expect(tab.page.get_by_role("heading", name="gpt-oss-mock")).to_be_visible()


def test_a_conversation_too_long_to_keep(tab: Tab, mock: Mock) -> None:
    """The browser has room for 5 M letters. Where they are used up, the page says so, and the conversation goes on."""
    tab.evaluate("sessionStorage.setItem('other', 'x'.repeat(5 * 2 ** 20 - 2000))")
    mock.will(says("long " * 1000), finishes())
    tab.send("Go on.")
    tab.ended()
    tab.expect()(tab.page.locator("#answer-figures")).to_contain_text("too long to be kept")
    mock.will(says("Yes."), finishes())
    tab.send("Still there?")
    tab.ended(2)
