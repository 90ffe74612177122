"""Bodies in which very much is wrong cost little, and their errors are short."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest

from gptoss_export.server.errors import ApiError
from gptoss_export.server.fields import Fields
from gptoss_export.server.requests_chat import ChatRequest
from gptoss_export.server.requests_completions import CompletionRequest
from gptoss_export.server.requests_responses import ResponseRequest
from gptoss_export.server.validation import parse

MANY = 20_000
HI = {"role": "user", "content": "Hi"}


def refused(model: type[Fields], **fields: Any) -> ApiError:
    """The error of a body. Fails where finding it takes much longer, or much more memory, than the body itself."""
    body = json.dumps({"model": "m", **fields}).encode()
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(ApiError) as raised:
            parse(model, body)
        seconds, (_, most) = time.monotonic() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 2 and most < 20 * len(body) + 10**6, (seconds, most)
    assert len(raised.value.message) < 3000
    return raised.value


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (ChatRequest, {"messages": [{}] * MANY}, "messages[0]"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages[0].content[0]"),
        (ChatRequest, {"messages": [HI], "tools": [{}] * MANY}, "tools[0].type"),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * MANY}]}, "messages[0].tool_calls[0].id"),
        (ChatRequest, {"messages": [HI], "stop": [1] * MANY}, "stop[0]"),
        (ChatRequest, {"messages": [HI], "modalities": [1] * MANY}, "modalities[0]"),
        (CompletionRequest, {"prompt": ["a"] + [1] * MANY}, "prompt[1]"),
        (CompletionRequest, {"prompt": [1] + ["a"] * MANY}, "prompt[1]"),
        (CompletionRequest, {"prompt": [[1] + ["a"] * MANY]}, "prompt[0][1]"),
        (ResponseRequest, {"input": [{}] * MANY}, "input[0]"),
        (ResponseRequest, {"input": [{"role": "user", "content": [{}] * MANY}]}, "input[0].content[0]"),
        (ResponseRequest, {"input": "a", "tools": [{}] * MANY}, "tools[0].type"),
        (ResponseRequest, {"input": "a", "include": [1] * MANY}, "include[0]"),
    ],
)
def test_a_list_in_which_all_is_wrong(model: type[Fields], fields: dict[str, Any], param: str) -> None:
    """The error names its first wrong item alone."""
    error = refused(model, **fields)
    assert error.param == param and "more" not in error.message.replace("or more", "")


def test_an_object_of_unknown_fields() -> None:
    error = refused(ChatRequest, messages=[HI], **{f"x{index}": 1 for index in range(MANY)})
    assert error.message.startswith(f"the body: found {MANY} errors, such as fields that are not known")
    few = refused(ChatRequest, messages=[HI], **{f"x{index}": 1 for index in range(30)})
    assert few.param == "x0" and few.message.endswith("; and 10 more")


@pytest.mark.parametrize("name", ["x" * 100_000, "x"])
def test_the_name_of_an_unknown_field_is_shortened(name: str) -> None:
    error = refused(ChatRequest, messages=[HI], **{name: 1})
    assert error.message == f"{name[:80]}{'...' * (len(name) > 80)}: this field is not supported; leave it out"


def test_all_fields_are_named_together() -> None:
    error = refused(ChatRequest, messages=[HI], n=0, temperature=9)
    assert "n: found 0" in error.message and "temperature: found 9" in error.message
