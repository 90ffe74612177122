"""Prompts that begin alike share their first hashes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss_export.replicas import beginnings as module
from gptoss_export.replicas.beginnings import beginnings

TURN = {"role": "user", "content": "What is the answer to this question? " * 20}
ANSWER = {"role": "assistant", "content": "It is the one that you expected. " * 30}
AGAIN = {"role": "user", "content": "And why? " * 40}


def of(**fields: Any) -> list[tuple[int, bytes]]:
    return list(beginnings(json.dumps({"model": "m", **fields}).encode()))


def shared(one: list[tuple[int, bytes]], other: list[tuple[int, bytes]]) -> int:
    """Characters of the longest beginning that both have."""
    return max((length for length, digest in one if (length, digest) in other), default=0)


def test_a_longer_conversation_has_the_hashes_of_its_beginning() -> None:
    first, second = of(messages=[TURN]), of(messages=[TURN, ANSWER, AGAIN])
    assert len(second) > len(first) >= 2
    assert second[: len(first)] == first
    assert [length for length, _ in second] == sorted({length for length, _ in second})


def test_what_differs_changes_the_hashes_from_there_on() -> None:
    common = of(messages=[TURN, ANSWER, AGAIN])
    other = of(messages=[TURN, ANSWER, {"role": "user", "content": "Thank you. " * 40}])
    begins = len(TURN["content"]) + len(ANSWER["content"])
    assert begins - 256 <= shared(common, other) < begins + 256
    assert common[-1] != other[-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "low"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "system", "content": "Be short."}, TURN]},
    ],
)
def test_what_stands_before_the_messages_counts_first(fields: dict[str, Any]) -> None:
    assert shared(of(messages=[TURN]), of(**{"messages": [TURN], **fields})) == 0


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.3}, {"stream": True}, {"max_tokens": 5}, {"reasoning_effort": "medium"}]
)
def test_what_is_not_in_the_prompt_does_not_count(fields: dict[str, Any]) -> None:
    assert of(messages=[TURN], **fields) == of(messages=[TURN])


def test_the_order_of_fields_does_not_count() -> None:
    turned = {"content": TURN["content"], "role": "user"}
    assert beginnings(json.dumps({"messages": [turned], "model": "m"}).encode()) == tuple(of(messages=[TURN]))


def test_text_as_input_is_the_message_that_the_next_turn_has() -> None:
    first = of(input=TURN["content"], instructions="Be short.")
    second = of(instructions="Be short.", input=[TURN, ANSWER])
    assert first == second[: len(first)]
    assert len(first) >= 2


def test_texts_and_tokens_as_prompt() -> None:
    assert 768 < shared(of(prompt="a" * 2000), of(prompt="a" * 1000 + "b" * 1000)) < 1000 + 256
    numbers = list(range(1000))
    assert shared(of(prompt=numbers), of(prompt=[*numbers[:500], *numbers])) > 1000


def test_a_long_prompt_has_few() -> None:
    hashes = of(prompt="word " * 100_000)
    assert len(hashes) < 120
    assert hashes[-1][0] > 450_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": 5}',
        b'{"prompt": null}',
        b" " * 5_000_000,
    ],
)
def test_what_is_no_request_has_none(body: bytes) -> None:
    assert beginnings(body) == ()


@pytest.mark.parametrize("parts", [(b"[", b"]", b""), (b'{"a":', b"}", b"1")], ids=["lists", "objects"])
def test_deep_nesting(parts: tuple[bytes, bytes, bytes]) -> None:
    """At some depths it can be read and not be written again."""
    begin, end, middle = parts
    for depth in range(700, 1010):
        beginnings(b'{"prompt": ' + begin * depth + middle + end * depth + b"}")


def test_what_no_context_holds_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text after about a context's worth of characters is not looked at, in however many messages it comes."""
    hashes = of(prompt="word " * 700_000)
    assert 450_000 < hashes[-1][0] < 550_000
    assert of(prompt="word " * 300_000) == hashes
    messages = [{"role": "user", "content": "x"}] * 100_000
    seen = 0

    def counted(value: Any) -> str:
        nonlocal seen
        seen += 1
        return json.dumps(value)

    monkeypatch.setattr(module, "_text", counted)
    assert 450_000 < of(messages=messages)[-1][0] < 550_000
    assert seen < 20_000


def test_half_a_surrogate_is_text() -> None:
    assert len(beginnings(b'{"prompt": "' + b"\\ud800" * 300 + b'"}')) >= 1
