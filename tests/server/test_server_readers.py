"""What the tokens of an answer say to a client, however they come: one at a time, or many at once."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_engine import answer, call, harmony_tokenizer, tokens_of

from gptoss_export.runtime.generation import Token
from gptoss_export.server.deltas import Delta
from gptoss_export.server.readers import ConversationReader, PlainReader
from gptoss_export.server.token_bytes import TokenBytes

TOKENIZER = harmony_tokenizer()
BYTES = TokenBytes(TOKENIZER)
TEXTS = st.text(st.sampled_from("ab the wör🙂\n"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("ab th🙂"), min_size=1, max_size=4), max_size=3)
BREAKS = st.sets(st.integers(1, 120), max_size=20)


def read(
    reader: ConversationReader | PlainReader, text: str, breaks: Collection[int] = (), end: str = "stop"
) -> list[Delta]:
    """The deltas of an answer whose tokens come in several parts."""
    tokens = [Token(0, token, -1.0) for token in tokens_of(TOKENIZER, text)]
    edges = [0, *sorted(at for at in breaks if at < len(tokens)), len(tokens)]
    deltas = [delta for first, last in pairwise(edges) for delta in reader.push(tokens[first:last])]
    return [*deltas, *reader.end(cut=end == "length")]


def texts(deltas: list[Delta], kind: str = "content") -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


def up_to(text: str, stops: list[str]) -> str:
    """A text before the first stop string that its tokens complete, one after the other."""
    tokens = TOKENIZER.encode(text)
    for count in range(1, len(tokens) + 1):
        part = TOKENIZER.text.decode(tokens[:count])
        if found := [part.find(stop) for stop in stops if stop in part]:
            return part[: min(found)]
    return text


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, TEXTS, STOPS, BREAKS)
def test_a_conversation_s_answer(thought: str, final: str, stops: list[str], breaks: set[int]) -> None:
    reader = ConversationReader(TOKENIZER, tuple(stops), logprobs=True)
    deltas = read(reader, answer(final, thought), breaks)
    expected = up_to(final, stops)
    assert texts(deltas) == expected and texts(deltas, "reasoning") == thought
    assert reader.stopped == any(stop in final for stop in stops)
    assert reader.finish("stop") == "stop" and reader.reasoning == len(TOKENIZER.encode(thought))
    said = b"".join(BYTES.of(token.id) for delta in deltas for token in delta.tokens)
    assert said.startswith(expected.encode()) and (reader.stopped or said == expected.encode())
    ends = [delta for delta in deltas if delta.ends and delta.kind == "content"]
    assert len(ends) == 1 and not ends[0].cut


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, STOPS, BREAKS)
def test_plain_text(text: str, stops: list[str], breaks: set[int]) -> None:
    reader = PlainReader(TOKENIZER, tuple(stops), logprobs=False)
    assert texts(read(reader, text, breaks)) == up_to(text, stops)
    assert reader.stopped == any(stop in text for stop in stops)
    if not stops:
        assert reader.count == len(TOKENIZER.encode(text)) and reader.finish("length") == "length"


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        ("just text", "just text", "", []),
        ("<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "ab", "", []),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b", "", "ab", []),
        (call("f", "{}").replace("<|call|>", "<|end|><|start|>assistant") + call("g", "{}"), "", "", ["f", "g"]),
        ("<|channel|>commentary to=user<|message|>hi<|return|>", "hi", "", []),
        ("<|channel|>final<|message|>cut", "cut", "", []),
        ("", "", "", []),
    ],
)  # fmt: skip
def test_unusual_answers(text: str, content: str, reasoning: str, calls: list[str]) -> None:
    reader = ConversationReader(TOKENIZER, (), logprobs=False)
    deltas = read(reader, text, set(range(200)))
    assert texts(deltas) == content and texts(deltas, "reasoning") == reasoning
    assert [delta.function for delta in deltas if delta.kind == "call" and delta.begins] == calls
    assert reader.finish("stop") == ("tool_calls" if calls else "stop")


def test_an_answer_that_is_cut_off() -> None:
    """The open message ends there; a call is no whole call then."""
    reader = ConversationReader(TOKENIZER, (), logprobs=False)
    *_, last = read(reader, call("f", '{"a"').removesuffix("<|call|>"), end="length")
    assert last.ends and last.cut and last.kind == "call" and reader.finish("length") == "length"
    reader = ConversationReader(TOKENIZER, (), logprobs=False)
    *_, last = read(reader, "<|channel|>final<|message|>whole", end="stop")
    assert last.ends and not last.cut


def test_what_is_said_before_a_call() -> None:
    """It is content, unless all content is one JSON value."""
    text = "<|channel|>commentary<|message|>Now.<|end|><|start|>assistant" + answer("{}")
    said = read(ConversationReader(TOKENIZER, (), logprobs=False), text)
    assert texts(said) == "Now.{}" and [delta.preamble for delta in said if delta.begins] == [True, False]
    alone = read(ConversationReader(TOKENIZER, (), logprobs=False, one_value=True), text)
    assert texts(alone) == "{}" and texts(alone, "reasoning") == "Now."


def test_the_bytes_of_tokens() -> None:
    for token in range(TOKENIZER.tokenizer.get_vocab_size()):
        text = TOKENIZER.tokenizer.decode([token], skip_special_tokens=False)
        assert BYTES.of(token).decode("utf-8", "replace") == text
    assert sorted(BYTES.of(token) for token in range(256)) == [bytes([byte]) for byte in range(256)]
    assert BYTES.of(10_000) == b""
