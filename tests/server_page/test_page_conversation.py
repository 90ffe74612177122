"""The page in a browser: a conversation, its settings, tool calls, and what a reload keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from page_mock import MODEL, PATIENCE, Mock, calls, chunk, finishes, says, thinks
from page_tab import Tab

TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def test_two_turns(tab: Tab, mock: Mock) -> None:
    """Each request holds the conversation so far, and the answers are shown while they come."""
    expect, gate = tab.expect(), threading.Event()
    expect(tab.page.get_by_role("heading", name=MODEL)).to_be_visible()
    mock.will(thinks("A greeting."), says("Hel"), gate, says("lo."), finishes())
    tab.send("Hi")
    expect(tab.body()).to_have_text("Hel")
    expect(tab.button("Stop")).to_be_visible()
    gate.set()
    expect(tab.body()).to_have_text("Hello.")
    tab.ended()
    mock.will(says("Fine."), finishes())
    tab.send("How are you?")
    tab.ended(2)
    assert tab.questions.locator("p").all_text_contents() == ["Hi", "How are you?"]
    assert [tab.body(index).text_content() for index in range(2)] == ["Hello.", "Fine."]
    first, second = mock.chats()
    assert first == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "reasoning_effort": "medium",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert second["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How are you?"},
    ]


def test_reasoning_is_open_while_it_streams_and_then_folds(tab: Tab, mock: Mock) -> None:
    expect, gates = tab.expect(), [threading.Event(), threading.Event()]
    mock.will(thinks("Let me "), gates[0], thinks("see."), gates[1], says("Yes."), finishes())
    tab.send("Is it so?")
    reasoning = tab.answers.locator("details")
    expect(reasoning.get_by_text("Let me")).to_be_visible()
    gates[0].set()
    expect(reasoning.locator("div")).to_have_text("Let me see.")
    assert reasoning.evaluate("details => details.open")
    gates[1].set()
    expect(tab.body()).to_have_text("Yes.")
    assert not reasoning.evaluate("details => details.open")
    reasoning.locator("summary").click()
    expect(reasoning.get_by_text("Let me see.")).to_be_visible()


def test_reasoning_that_the_reader_folded_and_opened_stays_open(tab: Tab, mock: Mock) -> None:
    gate = threading.Event()
    mock.will(thinks("Let me see."), gate, says("Yes."), finishes())
    tab.send("Is it so?")
    summary = tab.answers.locator("summary")
    summary.click()
    summary.click()
    gate.set()
    tab.ended()
    assert tab.answers.locator("details").evaluate("details => details.open")


def test_settings(tab: Tab, mock: Mock) -> None:
    """Effort, instructions, temperature and tools are in the next request."""
    expect = tab.expect()
    tab.page.get_by_label("Effort").select_option("high")
    tab.button("Settings").click()
    tab.page.get_by_label("System instructions").fill(" Answer in French. ")
    tab.page.get_by_label("Temperature").fill("0.3")
    for wrong, said in (("{", "These are not tools"), ("{}", "expected a JSON list"), ("[{}]", 'tool 1 has no "name"')):
        tab.page.get_by_label("Tools").fill(wrong)
        tab.button("Save").click()
        expect(tab.page.get_by_role("dialog").get_by_role("alert")).to_contain_text(said)
    wrapped = {"type": "function", "function": TOOL | {"name": "other"}}
    tab.page.get_by_label("Tools").fill(json.dumps([TOOL, wrapped]))
    tab.button("Save").click()
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    mock.will(says("Oui."), finishes())
    tab.send("Bonjour")
    tab.ended()
    (body,) = mock.chats()
    assert body["messages"][0] == {"role": "system", "content": "Answer in French."}
    assert (body["reasoning_effort"], body["temperature"]) == ("high", 0.3)
    assert body["tools"] == [{"type": "function", "function": TOOL}, wrapped]
    tab.button("Settings").click()
    tab.page.get_by_label("Temperature").fill("2")
    tab.button("Cancel").click()
    tab.button("Settings").click()
    expect(tab.page.get_by_label("Temperature")).to_have_value("0.3")


def test_tool_calls_and_their_results(tab: Tab, mock: Mock) -> None:
    """Arguments that come in parts are shown as JSON, and the results go back with the calls and the reasoning."""
    expect = tab.expect()
    mock.will(
        thinks("Two cities."),
        calls(0, "get_weather", '{"city":', "call_a"),
        calls(0, "", ' "Oslo"}'),
        calls(1, "get_weather", '{"id": 12345678901234567890}', "call_b"),
        finishes("tool_calls"),
    )
    tab.send("Weather?")
    tab.ended()
    assert tab.answers.locator(".call pre").all_text_contents() == [
        '{\n  "city": "Oslo"\n}',
        '{"id": 12345678901234567890}',  # JavaScript would round this number
    ]
    expect(tab.answers.get_by_role("heading", name="Tool call get_weather")).to_have_count(2)
    boxes = tab.page.get_by_label("Result of get_weather")
    boxes.nth(0).fill('{"celsius": 4}')
    boxes.nth(1).fill("no such city")
    mock.will(says("4 degrees."), finishes())
    tab.button("Send results").click()
    tab.ended(2)
    expect(boxes).to_have_count(0)
    expect(tab.answers.nth(0).get_by_label("Result").nth(1)).to_have_text("no such city")
    assert mock.chats()[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Two cities.",
            "tool_calls": [
                {
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                },
                {
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"id": 12345678901234567890}'},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": '{"celsius": 4}'},
        {"role": "tool", "tool_call_id": "call_b", "content": "no such city"},
    ]


def test_a_call_that_the_user_passes_over_is_not_sent(tab: Tab, mock: Mock) -> None:
    mock.will(calls(0, "get_weather", "{}", "call_a"), finishes("tool_calls"))
    tab.send("Weather?")
    tab.ended()
    mock.will(says("As you like."), finishes())
    tab.send("Never mind.")
    tab.ended(2)
    tab.expect()(tab.button("Send result")).to_have_count(0)
    assert [message["role"] for message in mock.chats()[1]["messages"]] == ["user", "user"]


def test_edit_and_retry(tab: Tab, mock: Mock) -> None:
    expect = tab.expect()
    for text in ("One.", "Two."):
        mock.will(says(text), finishes())
        tab.send(f"Say {text}")
        tab.ended(tab.questions.count())
    mock.will(says("Second two."), finishes())
    assert tab.button("Try again").count() == 1  # the last answer alone
    tab.button("Try again").click()
    expect(tab.body()).to_have_text("Second two.")
    tab.ended(2)
    tab.message.fill("a draft")
    tab.button("Edit").click()
    expect(tab.message).to_have_value("Say Two.")
    tab.button("Cancel").click()
    expect(tab.message).to_have_value("a draft")
    tab.button("Edit").click()
    mock.will(says("Three."), finishes())
    tab.send("Say three.")
    tab.ended(2)
    assert tab.questions.locator("p").all_text_contents() == ["Say One.", "Say three."]
    sent = [[message["content"] for message in body["messages"]] for body in mock.chats()]
    assert sent[2] == ["Say One.", "One.", "Say Two."]
    assert sent[3] == ["Say One.", "One.", "Say three."]


def test_new_conversation_and_back(tab: Tab, mock: Mock) -> None:
    expect = tab.expect()
    mock.will(says("One."), finishes())
    tab.send("Say one.")
    tab.ended()
    tab.button("New conversation").click()
    expect(tab.answers).to_have_count(0)
    expect(tab.page.get_by_text("Ask the model something.")).to_be_visible()
    tab.button("Bring back the last conversation").click()
    expect(tab.body()).to_have_text("One.")
    tab.button("New conversation").click()
    mock.will(says("Two."), finishes())
    tab.send("Say two.")
    tab.ended()
    assert [message["content"] for message in mock.chats()[1]["messages"]] == ["Say two."]


def test_a_new_conversation_during_an_answer(tab: Tab, mock: Mock) -> None:
    """The old answer stops, also where the new one has begun by then, and nothing of it comes into the new one."""
    expect, gate = tab.expect(), threading.Event()
    mock.will(says("One"), threading.Event())
    tab.send("Say one.")
    expect(tab.body()).to_have_text("One")
    tab.message.fill("Say two.")
    mock.will(says("Two"), gate, says("."), finishes())
    tab.evaluate(
        "() => { document.getElementById('new').click(); document.getElementById('composer').requestSubmit() }"
    )
    assert mock.client_gone.wait(PATIENCE)
    expect(tab.body()).to_have_text("Two")
    expect(tab.button("Stop")).to_be_visible()
    gate.set()
    tab.ended()
    assert tab.answers.locator(".body").all_text_contents() == ["Two."]
    assert [message["content"] for message in mock.chats()[1]["messages"]] == ["Say two."]


def test_reload(tab: Tab, mock: Mock) -> None:
    """The conversation, the settings, a tool call that waits and an unsent message are there again."""
    expect = tab.expect()
    tab.page.get_by_label("Effort").select_option("low")
    mock.will(thinks("Hm."), says("Here: `x`\n\n```py\na = 1\n\nb = 2\n```\n"), finishes(tokens=7))
    tab.send("Code?")
    tab.ended()
    mock.will(calls(0, "get_weather", '{"city": "Oslo"}', "call_a"), finishes("tool_calls"))
    tab.send("Weather?")
    tab.ended(2)
    tab.message.fill("not sent yet")
    before = tab.page.locator("#turns").evaluate("turns => turns.outerHTML")
    tab.page.reload()
    expect(tab.answers).to_have_count(2)
    assert tab.page.locator("#turns").evaluate("turns => turns.outerHTML") == before
    expect(tab.message).to_have_value("not sent yet")
    expect(tab.page.get_by_label("Effort")).to_have_value("low")
    mock.will(says("Cold."), finishes())
    tab.page.get_by_label("Result of get_weather").fill("4")
    tab.button("Send result").click()
    tab.ended(3)
    assert mock.chats()[2]["messages"][-1] == {"role": "tool", "tool_call_id": "call_a", "content": "4"}


def test_reload_during_an_answer_keeps_what_came(tab: Tab, mock: Mock) -> None:
    expect = tab.expect()
    mock.will(thinks("Hm."), says("Half an ans"), threading.Event())
    tab.send("Go on.")
    expect(tab.body()).to_have_text("Half an ans")
    tab.page.reload()
    expect(tab.body()).to_have_text("Half an ans")
    expect(tab.answers.get_by_text("Interrupted.")).to_be_visible()
    expect(tab.button("Send")).to_be_visible()
    assert mock.client_gone.wait(PATIENCE)


@pytest.mark.parametrize("kept", ["{", "null", '{"version": 0, "turns": 1}'])
def test_what_another_page_kept_is_left_alone(tab: Tab, mock: Mock, kept: str) -> None:
    tab.context.add_init_script(f"sessionStorage.setItem('gptoss-export conversation', {json.dumps(kept)})")
    tab.page.reload()
    mock.will(says("One."), finishes())
    tab.send("Say one.")
    tab.ended()


def test_figures(open_tab: Callable[..., Tab], mock: Mock) -> None:
    """The tokens a second are those between the first and the last token, and the server's figures are its own."""
    mock.metrics = (
        "# HELP gptoss_requests_running how many\n# TYPE gptoss_requests_running gauge\ngptoss_requests_running 2.0\n"
        "gptoss_requests_waiting 1.0\ngptoss_kv_pages_used 12.0\ngptoss_kv_pages 512.0\n"
    )
    tab, gate = open_tab(mock.url), threading.Event()
    expect = tab.expect()
    expect(tab.page.get_by_text("2 running · 1 waiting · 12 of 512 KV pages")).to_be_visible()
    mock.will(says("a"), gate, says("b"), finishes(tokens=51))
    tab.send("Count.")
    expect(tab.body()).to_have_text("a")
    tab.page.wait_for_timeout(500)
    gate.set()
    tab.ended()
    line = tab.page.locator("#answer-figures").text_content()
    first, tokens, rate = line.split(" · ")
    assert 0 <= float(first.removeprefix("first token ").removesuffix(" s")) < 5 and tokens == "51 tokens"
    assert 1 < float(rate.removesuffix(" tokens/s")) <= 100  # 50 tokens in half a second or more
    mock.metrics = "something_else 1\n"
    mock.will(chunk({"role": "assistant"}), finishes("length", tokens=1))
    tab.send("Nothing.")
    tab.ended(2)
    expect(tab.answers.nth(1).get_by_text("reached the greatest number of tokens")).to_be_visible()
    expect(tab.page.locator("#server-figures")).to_have_text("")
