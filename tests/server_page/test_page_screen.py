"""The page in a browser: by keyboard, on a telephone, in light and dark, for a screen reader, and while one scrolls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from page_mock import Mock, calls, finishes, refuses, says, thinks
from page_tab import Tab

# For each element with own text: its text, its contrast with what is behind it, and the contrast that WCAG AA wants.
# For each field and button with a border: the border's contrast, of which AA wants 3.
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
      if (a !== 0) throw new Error("a ground that is partly transparent");
    }
    throw new Error("no ground");
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility({ visibilityProperty: true }) || element.closest(".spoken")) continue;
    const style = getComputedStyle(element);
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const what = `${element.tagName} ${element.id || element.className} ${element.textContent.slice(0, 20)}`;
    if (text) found.push([what, contrast(parse(style.color).slice(0, 3), ground(element)), 4.5]);
    const border = style.borderStyle === "none" ? [0, 0, 0, 0] : parse(style.borderColor);
    if (element.matches("input, textarea, button, .box") && border[3] !== 0)
      found.push([what + " border", contrast(border.slice(0, 3), ground(element.parentElement)), 3]);
  }
  return found;
}"""

# Everything that can be pressed and is seen: its name and its size in CSS pixels.
TARGETS = """() => [...document.querySelectorAll("button, select, summary, input, textarea")]
  .filter((element) => element.checkVisibility({ visibilityProperty: true }))
  .map((element) => [element, element.getBoundingClientRect()])
  .map(([element, { width, height }]) => [element.textContent || element.id, width, height])"""

WIDE = "w" * 300
ANSWER = f"Long: {WIDE}\n\n`{WIDE}`\n\n```python\n{WIDE}\n```\n\nDone."


def fill(tab: Tab, mock: Mock) -> None:
    """One of everything: a question, reasoning, text, code, a tool call with its result, one that waits, an error."""
    mock.will(thinks(f"Hm. {WIDE}"), says(ANSWER), finishes())
    tab.send(f"Wide? {WIDE}")
    tab.ended()
    tab.answers.locator("summary").click()
    mock.will(calls(0, "a_function_with_a_long_name", f'{{"wide": "{WIDE}"}}', "call_a"), finishes("tool_calls"))
    tab.send("A tool.")
    tab.ended(2)
    mock.will(calls(0, "get_weather", '{"city": "Oslo"}', "call_b"), finishes("tool_calls"))
    tab.page.get_by_label("Result of").fill(WIDE)
    tab.button("Send result").click()
    tab.ended(3)


def fail(tab: Tab, mock: Mock) -> None:
    mock.will_refuse(429, refuses(f"Too many. {WIDE}"))
    tab.button("Try again").click()
    tab.ended(3)


def test_keyboard_alone(tab: Tab, mock: Mock) -> None:
    """Everything is reached and done without a mouse, in the order in which it is seen."""
    expect, keyboard = tab.expect(), tab.page.keyboard
    expect(tab.message).to_be_focused()  # a page without a conversation begins there
    mock.will(thinks("Hm."), says("One."), finishes())
    keyboard.type("First line")
    keyboard.press("Shift+Enter")
    keyboard.type("second line")
    keyboard.press("Enter")
    tab.ended()
    assert mock.chats()[0]["messages"][0]["content"] == "First line\nsecond line"
    expect(tab.message).to_be_focused()
    expect(tab.message).to_have_value("")
    keyboard.press("Enter")  # nothing to send
    keyboard.press("ArrowUp")
    expect(tab.message).to_have_value("First line\nsecond line")
    keyboard.press("Escape")
    expect(tab.message).to_have_value("")
    tab.page.reload()
    tab.ended()
    tab.page.locator(".skip").focus()
    seen = ["Skip to the message box"]
    for _ in range(12):
        keyboard.press("Tab")
        seen.append(
            tab.evaluate(
                "(({ id, tagName, textContent }) => (tagName.match(/MAIN|AREA|SELECT/) ? id : textContent))"
                "(document.activeElement)"
            )
        )
        outline = tab.evaluate("""() => {
          const element = document.activeElement.closest(".box:has(#message:focus)") ?? document.activeElement;
          return getComputedStyle(element).outlineStyle;
        }""")
        assert outline == "solid", seen
        if seen[-1] == "Send":
            break
    assert seen == [
        "Skip to the message box", "New conversation", "Settings", "conversation", "Edit", "Thought for a moment",
        "Copy", "Try again", "message", "effort", "Send",
    ]  # fmt: skip
    keyboard.press("Shift+Tab")
    keyboard.press("Shift+Tab")
    mock.will(says("Two, "), threading.Event())
    keyboard.type("Again")
    keyboard.press("Enter")
    expect(tab.body()).to_have_text("Two,")
    keyboard.type("while it streams")
    keyboard.press("Enter")  # sends nothing now
    keyboard.press("Escape")
    tab.ended(2)
    expect(tab.message).to_have_value("while it streams")
    assert len(mock.chats()) == 2


def test_skip_link_and_dialogs(tab: Tab) -> None:
    expect, keyboard = tab.expect(), tab.page.keyboard
    tab.page.get_by_role("link", name="Skip to the message box").focus()
    assert tab.page.locator(".skip").bounding_box()["y"] >= 0  # seen while it has the focus
    keyboard.press("Enter")
    expect(tab.message).to_be_focused()
    tab.button("Settings").focus()
    keyboard.press("Enter")
    expect(tab.page.get_by_label("System instructions")).to_be_focused()
    keyboard.press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    expect(tab.button("Settings")).to_be_focused()


def test_after_a_button_that_goes_away_the_stop_button_has_the_focus(tab: Tab, mock: Mock) -> None:
    mock.will(says("One."), finishes())
    tab.send("Say one.")
    tab.ended()
    mock.will(says("Two."), threading.Event())
    tab.button("Try again").focus()
    tab.page.keyboard.press("Enter")
    tab.expect()(tab.button("Stop")).to_be_focused()
    tab.page.keyboard.press("Enter")
    tab.ended()


def test_telephone(open_tab: Callable[..., Tab], mock: Mock) -> None:
    """320 x 640: nothing is wider than the screen, and everything that is pressed has 44 pixels."""
    tab = open_tab(mock.url, phone=True)
    for prepare in (lambda: None, lambda: fill(tab, mock), lambda: fail(tab, mock), tab.button("Settings").click):
        prepare()
        for element in ("document.documentElement", "document.body", "document.getElementById('conversation')"):
            assert tab.evaluate(f"{element}.scrollWidth <= {element}.clientWidth"), element
        assert tab.evaluate("innerWidth") == 320  # a page that is too wide is made smaller
        targets = tab.evaluate(TARGETS)
        assert len(targets) >= 4 and [target for target in targets if min(target[1:]) < 44] == []
    tab.button("Cancel").click()
    assert tab.page.locator("pre").first.evaluate("pre => pre.scrollWidth > pre.clientWidth")  # code scrolls by itself


def test_the_keyboard_of_a_telephone(open_tab: Callable[..., Tab], mock: Mock) -> None:
    """Enter begins a new line there. The message box and the end of the answer stay above the keyboard."""
    tab = open_tab(mock.url, phone=True)
    mock.will(says("Line.\n\n" * 40 + "End."), finishes())
    tab.message.tap()
    tab.page.keyboard.type("a")
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.type("b")
    tab.button("Send").tap()
    tab.ended()
    assert mock.chats()[0]["messages"][0]["content"] == "a\nb"
    tab.page.set_viewport_size({"width": 320, "height": 330})  # what a keyboard leaves
    for locator in (tab.message, tab.button("Send"), tab.answers.get_by_text("End.")):
        box = locator.bounding_box()
        tab.expect()(locator).to_be_in_viewport(ratio=1)
        assert box["y"] + box["height"] <= 330
    tab.message.fill("line\n" * 60)
    tab.expect()(tab.button("Send")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_tab: Callable[..., Tab], mock: Mock, scheme: str) -> None:
    tab = open_tab(mock.url, color_scheme=scheme)
    mock.metrics = "gptoss_requests_running 1\n"
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((value) => value < 60)")
    assert dark == (scheme == "dark")
    count = 0
    for prepare in (lambda: None, lambda: fill(tab, mock), lambda: fail(tab, mock), tab.button("Settings").click):
        prepare()
        found = tab.evaluate(CONTRASTS)
        count += len(found)
        assert [each for each in found if each[1] < each[2]] == []
    assert count > 80


def test_names_and_roles(tab: Tab, mock: Mock) -> None:
    """In the browser's own accessibility tree, everything that takes the focus has a name."""
    fill(tab, mock)
    session = tab.context.new_cdp_session(tab.page)
    for prepare in (lambda: None, lambda: fail(tab, mock), tab.button("Settings").click):
        prepare()
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        taking = [node for node in nodes if not node["ignored"] and focusable(node)]
        assert len(taking) > 4 and [node["role"] for node in taking if not node["name"]["value"]] == []
        fields = "[...document.querySelectorAll('input, textarea, select')]"
        assert tab.evaluate(f"{fields}.filter((field) => !field.labels.length).map((field) => field.id)") == []
    tab.button("Cancel").click()
    roles = {node["role"]["value"] for node in session.send("Accessibility.getFullAXTree")["nodes"]}
    assert {"main", "banner", "contentinfo", "heading", "article"} <= roles
    assert tab.evaluate("document.documentElement.lang") == "en"
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


def focusable(node: dict[str, Any]) -> bool:
    properties = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
    return bool(properties.get("focusable")) and node["role"]["value"] != "RootWebArea"


def test_an_answer_is_spoken_in_whole_sentences(tab: Tab, mock: Mock) -> None:
    expect, gates = tab.expect(), [threading.Event() for _ in range(3)]
    region = tab.page.locator("[aria-live=polite]")
    mock.will(
        thinks("Not spoken. "), says("First sen"), gates[0], says("tence. Second"), gates[1],
        says(" one!\n\n```py\nx = 1\n"), gates[2], says("```\n\nThe end"), finishes(),
    )  # fmt: skip
    tab.send("Speak.")
    expect(tab.body()).to_have_text("First sen")
    assert region.text_content() == ""
    spoken = ["First sentence.", "Second one! Code in py.", "The end"]
    for index, gate in enumerate(gates):
        gate.set()
        expect(region.locator("p")).to_have_text(spoken[: index + 1])
    tab.ended()
    expect(region.locator("p")).to_have_text(spoken)


def test_motion(open_tab: Callable[..., Tab], mock: Mock) -> None:
    """The sign that an answer is being made moves, and does not for those who want less motion."""
    for preference, moving in (("no-preference", 1), ("reduce", 0)):
        tab = open_tab(mock.url, reduced_motion=preference)
        mock.will(threading.Event())
        tab.send("Wait.")
        tab.expect()(tab.page.locator("article[aria-busy]")).to_have_count(1)
        assert tab.evaluate("document.getAnimations().length") == moving
        tab.button("Stop").click()


def test_scrolling(tab: Tab, mock: Mock) -> None:
    """An answer is followed, until the reader scrolls up: then the page stays where it is, until they go to the end."""
    expect, gates = tab.expect(), [threading.Event() for _ in range(3)]
    lines = [says("A line.\n\n") for _ in range(60)]
    mock.will(*lines, gates[0], *lines, gates[1], *lines, gates[2], *lines, finishes())
    tab.send("Go on.")

    def paragraphs(count: int) -> int:
        """Wait for so many, and let the page draw them. Returns how far the end is below what is seen."""
        expect(tab.body().locator("p")).to_have_count(count)
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return tab.evaluate("(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)"
                            "(document.getElementById('conversation'))")  # fmt: skip

    assert paragraphs(60) <= 1
    expect(tab.button("Go to the end")).to_be_hidden()
    tab.page.locator("#conversation").hover()
    tab.page.mouse.wheel(0, -30)  # a little is enough
    expect(tab.button("Go to the end")).to_be_visible()
    top = tab.evaluate("document.getElementById('conversation').scrollTop")
    gates[0].set()
    assert paragraphs(120) > 500
    assert tab.evaluate("document.getElementById('conversation').scrollTop") == top
    tab.button("Go to the end").click()
    expect(tab.button("Go to the end")).to_be_hidden()
    gates[1].set()
    assert paragraphs(180) <= 1
    tab.page.mouse.wheel(0, -300)
    expect(tab.button("Go to the end")).to_be_visible()
    tab.page.mouse.wheel(0, 290)  # back by hand, and not quite to the end, which moves on meanwhile
    expect(tab.button("Go to the end")).to_be_hidden()
    gates[2].set()
    assert paragraphs(240) <= 1
