"""Responses as OpenAI's Python client sees them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from live_server import MODEL, Live
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel
from scripted_engine import answer, call, shown

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
        "additionalProperties": False,
    },
    "strict": False,
}


def ask(client: OpenAI, given: Any = "Hello wörld 🙂", **fields: Any) -> Response:
    result = client.responses.create(model=MODEL, input=given, **fields)
    assert isinstance(result, Response)
    return result


def events(client: OpenAI, given: Any = "Hello wörld 🙂", **fields: Any) -> list[Any]:
    return list(client.responses.create(model=MODEL, input=given, stream=True, **fields))


def prompt(live: Live) -> str:
    return shown(live.engine.tokenizer, live.engine.requests[-1].prompt)


def test_a_response(live: Live, client: OpenAI) -> None:
    live.engine.reused = {0: 6}
    response = ask(client, instructions="Be kind.", reasoning={"effort": "low"}, metadata={"a": "b"}, temperature=0.5)
    assert (response.status, response.output_text, response.error) == ("completed", "You said: Hello wörld 🙂", None)
    reasoning, message = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None and reasoning.summary == []
    assert reasoning.content[0].text == "The user said: Hello wörld 🙂" and reasoning.status == "completed"
    assert message.type == "message" and (message.role, message.phase) == ("assistant", "final_answer")
    assert response.id.startswith("resp_") and (response.object, response.model) == ("response", MODEL)
    assert response.metadata == {"a": "b"} and (response.temperature, response.top_p) == (0.5, 1.0)
    assert response.reasoning is not None and response.reasoning.effort == "low"
    assert response.instructions == "Be kind." and response.tool_choice == "auto" and response.tools == []
    assert response.usage is not None and response.usage.input_tokens == len(live.engine.requests[0].prompt)
    words = live.engine.tokenizer.encode("The user said: Hello wörld 🙂")
    assert response.usage.output_tokens_details.reasoning_tokens == len(words)
    assert response.usage.input_tokens_details.cached_tokens == 6
    assert "Reasoning: low" in prompt(live) and "# Instructions\n\nBe kind.<|end|><|start|>user" in prompt(live)
    assert live.engine.requests[0].sampling.temperature == 0.5


def test_items_as_input(live: Live, client: OpenAI) -> None:
    ask(
        client,
        [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "!"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Two", "annotations": []}],
            },
            {"role": "system", "content": "Be long."},
            {"type": "message", "role": "user", "content": "Three"},
        ],
        instructions="Be kind.",
    )
    assert prompt(live).split("<|end|>", 1)[1] == (
        "<|start|>developer<|message|># Instructions\n\nBe kind.\n\nBe short.<|end|>"
        "<|start|>user<|message|>One!<|end|><|start|>assistant<|channel|>final<|message|>Two<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe long.<|end|>"
        "<|start|>user<|message|>Three<|end|><|start|>assistant"
    )


def test_a_call_and_its_result(live: Live, client: OpenAI) -> None:
    """What the client got is sent back as it is, with the result."""
    preamble = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"
    live.engine.script = lambda text: (
        "<|channel|>analysis<|message|>Rain?<|end|><|start|>assistant"
        + preamble
        + call("get_weather", '{"place": "Paris"}')
    )
    response = ask(client, "Weather?", tools=[WEATHER])
    reasoning, said, made = response.output
    assert reasoning.type == "reasoning" and said.type == "message" and said.phase == "commentary"
    assert made.type == "function_call" and (made.name, made.status) == ("get_weather", "completed")
    assert json.loads(made.arguments) == {"place": "Paris"} and made.call_id.startswith("call_")
    live.engine.script = lambda text: answer("It rains.")
    given: Any = [
        {"role": "user", "content": "Weather?"},
        *(item.model_dump(exclude_unset=True) for item in response.output),
        {"type": "function_call_output", "call_id": made.call_id, "output": [{"type": "input_text", "text": "rain"}]},
    ]
    assert ask(client, given, tools=[WEATHER]).output_text == "It rains."
    assert prompt(live).endswith(
        "<|start|>user<|message|>Weather?<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Rain?<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
        '{"place": "Paris"}<|call|>'
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>rain<|end|>"
        "<|start|>assistant"
    )


def test_the_events_of_an_answer(live: Live, client: OpenAI) -> None:
    found = events(client)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    kinds = [event.type for event in found]
    once = [kind for at, kind in enumerate(kinds) if kinds[at - 1 : at] != [kind]]  # deltas that follow each other
    assert once == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    by_kind = {event.type: event for event in found}
    texts = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert "".join(texts) == by_kind["response.output_text.done"].text == "You said: Hello wörld 🙂"
    completed = by_kind["response.completed"].response
    assert completed.output_text == "You said: Hello wörld 🙂" and completed.status == "completed"
    assert completed.usage is not None and by_kind["response.created"].response.output == []
    assert by_kind["response.created"].response.status == "in_progress"
    done = [event for event in found if event.type == "response.output_item.done"]
    assert [event.output_index for event in done] == [0, 1] and [event.item for event in done] == completed.output
    added = [event.item for event in found if event.type == "response.output_item.added"]
    assert [item.id for item in added] == [item.id for item in completed.output]
    assert {item.status for item in added} == {"in_progress"} and [item.content for item in added] == [[], []]


def test_the_events_of_a_call(live: Live, client: OpenAI) -> None:
    live.engine.script = lambda text: call("get_weather", '{"place": "Paris"}')
    found = events(client, tools=[WEATHER])
    deltas = [event for event in found if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in found if event.type == "response.function_call_arguments.done"]
    assert "".join(event.delta for event in deltas) == done.arguments == '{"place": "Paris"}'
    assert found[2].item.arguments == "" and found[2].item.name == "get_weather"
    assert found[-1].response.output[0].arguments == '{"place": "Paris"}' and found[-1].type == "response.completed"


def test_the_streaming_helper_of_the_client(live: Live, client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Hello") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert final.output_text == "You said: Hello" and "response.output_text.delta" in kinds


def test_an_async_client(live: Live) -> None:
    async def ask_twice() -> list[str]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0) as client:
            whole = await client.responses.create(model=MODEL, input="Hello")
            stream = await client.responses.create(model=MODEL, input="Hello", stream=True)
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            return [whole.output_text, "".join(deltas)]

    assert asyncio.run(ask_twice()) == ["You said: Hello"] * 2


def test_a_response_is_cut_off(live: Live, client: OpenAI) -> None:
    live.engine.script = lambda text: answer("abcdefgh")
    header = 2 + len(live.engine.tokenizer.encode("final"))  # <|channel|>final<|message|>
    response = ask(client, max_output_tokens=header + 3)
    assert (response.status, response.output_text) == ("incomplete", "abc")
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].type == "message" and response.output[0].status == "incomplete"
    assert events(client, max_output_tokens=header + 3)[-1].type == "response.incomplete"
    assert ask(client, max_output_tokens=1).output == []


class Verdict(BaseModel):
    good: bool
    grade: Literal["a", "b", "c"]


def test_structured_output(live: Live, client: OpenAI) -> None:
    live.engine.script = lambda text: answer("no JSON", "Let me think.")
    response = client.responses.parse(model=MODEL, input="Judge.", text_format=Verdict)
    assert isinstance(response.output_parsed, Verdict)
    assert '# Response Formats\n\n## Verdict\n\n{"' in prompt(live)
    live.engine.script = lambda text: answer('{"a": 1}')
    assert ask(client, text={"format": {"type": "json_object"}}).output_text == '{"a": 1}'


def test_logprobs(live: Live, client: OpenAI) -> None:
    response = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    message = response.output[1]
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs or []
    assert b"".join(bytes(entry.bytes) for entry in logprobs) == "You said: Hello wörld 🙂".encode()
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)
    streamed = events(client, include=["message.output_text.logprobs"])
    assert sum(len(event.logprobs) for event in streamed if event.type == "response.output_text.delta") == len(logprobs)


def test_fields_that_change_nothing(live: Live, client: OpenAI) -> None:
    """docs/serving.md lists them."""
    found = events(
        client,
        stream_options={"include_obfuscation": True},
        include=["reasoning.encrypted_content"],
        reasoning={"summary": "auto"},
        text={"verbosity": "medium"},
        truncation="disabled",
        background=False,
        parallel_tool_calls=False,
        prompt_cache_key="k",
    )
    assert found[-1].response.output_text == "You said: Hello wörld 🙂"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: .*not stored here; send the items"),
        ({"store": True}, "store: found True, expected False; responses are not stored here"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation: .*not stored here"),
        ({"truncation": "auto"}, "truncation"),
        (
            {"tools": [{"type": "web_search"}]},
            r"tools\[0\].type: found 'web_search'.*functions are the only tools here",
        ),
        ({"extra_body": {"seed": 5}}, "seed: this field is not supported"),
        ({"include": ["file_search_call.results"]}, r"include\[0\]"),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            r"stream_options\.include_usage: this field is not supported",
        ),
    ],
)
def test_what_is_not_there_is_named(live: Live, client: OpenAI, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        ask(client, **fields)


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (
            [{"type": "item_reference", "id": "msg_1"}],
            r"input\[0\]: found 'item_reference', expected an item of the type",
        ),
        ([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}], "no function_call_output of c"),
        (
            [{"type": "function_call_output", "call_id": "c", "output": "x"}],
            r"input\[0\].call_id: found c, expected that",
        ),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input_image.*reads text alone"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}], r"content\[0\]: found 'input_file'"),
        ([], "input: .*expected 1 or more items"),
        ([{"role": "tool", "content": "x"}], r"input\[0\]: found 'tool'"),
    ],
)
def test_items_that_cannot_be_read_are_named(live: Live, client: OpenAI, items: Any, named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        ask(client, items)
