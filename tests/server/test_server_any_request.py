"""Whatever JSON a request holds, it becomes orders or an error that tells the client what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import MODEL, SETTINGS, served
from scripted_engine import ScriptedEngine

from gptoss_export.errors import UsageError
from gptoss_export.server import chat, completions, responses
from gptoss_export.server.errors import ApiError
from gptoss_export.server.requests_chat import ChatRequest
from gptoss_export.server.requests_completions import CompletionRequest
from gptoss_export.server.requests_responses import ResponseRequest

SERVED = served(ScriptedEngine())
READS: dict[str, Callable[..., Any]] = {
    "chat": chat.read_request,
    "completions": completions.read_request,
    "responses": responses.read_request,
}
GOOD: dict[str, dict[str, Any]] = {
    "chat": {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning": "Hm.",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "tool_choice": "auto",
        "stop": ["a"],
        "temperature": 0.5,
        "logit_bias": {"5": 1},
    },
    "completions": {"model": MODEL, "prompt": ["a", "b"], "stop": "x", "n": 2, "logprobs": 1},
    "responses": {
        "model": MODEL,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "text": {"format": {"type": "json_object"}},
        "reasoning": {"effort": "low"},
    },
}
FIELDS = sorted(
    {name for model in (ChatRequest, CompletionRequest, ResponseRequest) for name in model.model_fields}
    | {"role", "content", "type", "text", "name", "schema", "function", "id", "x"}
)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["user", "tool", "text", "function", "json_schema", "required", "c", "f"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be changed."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one in a place of it."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


def reads(api: str, value: Any) -> bool:
    """Whether a request is one. Fails with any other error than one for the client."""
    try:
        READS[api](SERVED, SETTINGS, json.dumps(value).encode())
    except ApiError as error:
        assert 400 <= error.status < 500 and error.message
        return False
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("api", sorted(GOOD))
def test_good_requests(api: str) -> None:
    assert reads(api, GOOD[api])


@pytest.mark.parametrize("api", sorted(GOOD))
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_changed_requests(api: str, data: st.DataObject) -> None:
    value = GOOD[api]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(value)))
        value = changed(value, place, data.draw(VALUES))
    if isinstance(value, dict) and data.draw(st.booleans()):
        value = value | data.draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2))
    reads(api, value)
