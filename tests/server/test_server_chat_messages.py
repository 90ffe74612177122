"""How the messages of a chat completion's request are written into its prompt."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from live_server import MODEL, Live
from scripted_engine import answer, shown

from gptoss_export.server.chat_messages import read_messages
from gptoss_export.server.requests_chat import ChatRequest
from gptoss_export.server.validation import parse

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "x"}
CALLED = (
    "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>x<|end|>"
)
THOUGHT = "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
SAID_NOTHING = "<|start|>assistant<|channel|>final<|message|><|end|>"


def written(live: Live, *messages: Any) -> str:
    """The prompt after the system message, without the beginning of the answer."""
    live.engine.requests.clear()
    response = live.post("/v1/chat/completions", {"model": MODEL, "messages": list(messages)})
    assert response.status_code == 200, response.text
    prompt = shown(live.engine.tokenizer, live.engine.requests[0].prompt)
    return prompt.partition("<|end|>")[2].removesuffix("<|start|>assistant")


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]])
@pytest.mark.parametrize(
    ("fields", "after", "expected"),
    [
        ({}, [], SAID_NOTHING),
        ({"tool_calls": []}, [], SAID_NOTHING),
        ({"tool_calls": [CALL]}, [RESULT], CALLED),
        ({"reasoning": "Hm."}, [], THOUGHT),
        ({"reasoning": "Hm.", "tool_calls": [CALL]}, [RESULT], THOUGHT + CALLED),
    ],
)
def test_a_message_without_text(live: Live, content: Any, fields: Any, after: Any, expected: str) -> None:
    """An answer that was empty is written so. Before a call, and where reasoning was cut off, there was no text."""
    message = {"role": "assistant", "content": content, **fields}
    assert written(live, USER, message, *after) == f"<|start|>user<|message|>Hi<|end|>{expected}"


def test_an_empty_answer_is_sent_back(live: Live) -> None:
    live.engine.script = lambda prompt: answer("")
    message = live.chat().json()["choices"][0]["message"]
    assert message["content"] == ""
    assert SAID_NOTHING in written(live, USER, message, USER)


def test_names_of_authors(live: Live) -> None:
    """Instructions have none, so that a message of the system with a name is one of its own."""
    said = written(
        live,
        {"role": "system", "content": "Be kind."},
        {"role": "system", "name": "rules", "content": "Be short."},
        {"role": "user", "name": "Bob", "content": "Hi"},
        {"role": "assistant", "name": "Eve", "reasoning": "Hm.", "content": "I look.", "tool_calls": [CALL]},
        RESULT,
        {"role": "developer", "name": "a-b", "content": "Go on."},
        {"role": "user", "name": "Zoë", "content": "Well?"},
    )
    assert said == (
        "<|start|>developer<|message|># Instructions\n\nBe kind.<|end|>"
        "<|start|>developer:rules<|message|># Instructions\n\nBe short.<|end|>"
        "<|start|>user:Bob<|message|>Hi<|end|>"
        "<|start|>assistant:Eve<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant:Eve<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant:Eve to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>x<|end|>"
        "<|start|>developer:a-b<|message|># Instructions\n\nGo on.<|end|>"
        "<|start|>user:Zoë<|message|>Well?<|end|>"
    )


def test_many_calls_take_little_time() -> None:
    count = 20_000
    calls = [{**CALL, "id": str(index)} for index in range(count)]
    results = [{**RESULT, "tool_call_id": str(index)} for index in range(count)]
    body = {"model": MODEL, "messages": [USER, {"role": "assistant", "tool_calls": calls}, *results]}
    messages = parse(ChatRequest, json.dumps(body).encode()).messages
    begin = time.monotonic()
    assert len(read_messages(messages)[1]) == 1 + 2 * count
    assert time.monotonic() - begin < 3
