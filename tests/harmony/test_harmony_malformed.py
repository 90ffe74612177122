"""Answers that are not in the format: nothing raises, nothing hangs, and no text of a body is lost."""

from __future__ import annotations

import random
import time

import pytest
from harmony_strategies import MANY
from hypothesis import given
from hypothesis import strategies as st
from test_harmony_parsing import joined, read

from gptoss_export.harmony.headers import LONGEST
from gptoss_export.harmony.messages import CHANNELS, Message
from gptoss_export.harmony.parsing import AnswerParser
from gptoss_export.harmony.vocabulary import CONTROL_TOKENS, HarmonyTokenizer

CONTROL = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|endoftext|>", "<|startoftext|>"]
ENDS = ["<|return|>", "<|call|>"]


def ids(tokenizer: HarmonyTokenizer, text: str) -> list[int]:
    """The tokens of a text in which names of special tokens are these tokens."""
    found: list[int] = []
    for index, part in enumerate(text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0")):
        token = tokenizer.tokenizer.token_to_id(part) if index % 2 else None
        found += tokenizer.encode(part) if token is None else [token]
    return found


def final(text: str) -> Message:
    return Message("assistant", text, "final")


F, A, C = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>"
CASES = {
    "nothing": ("", []),
    "only the end": ("<|return|>", []),
    "no format at all": ("Hello there", [final("Hello there")]),
    "no format at all, ended": ("Hello there<|return|>", [final("Hello there")]),
    "one letter that may begin a header": ("a<|return|>", [final("a")]),
    "cut off in the role": ("<|end|><|start|>assis", []),
    "cut off in a recipient": (" to=functions.f", []),
    "cut off before the equals sign": (" to", []),
    "cut off in the channel": ("<|channel|>anal", []),
    "cut off in the recipient of the channel": ("<|channel|>commentary to=functions.ge", []),
    "cut off in the content type": ("<|channel|>commentary to=functions.f <|constrain|>js", []),
    "no channel": ("<|message|>Hi<|return|>", [final("Hi")]),
    "no channel in a call": (
        " to=functions.f<|message|>{}<|call|>",
        [Message("assistant", "{}", "commentary", "functions.f")],
    ),
    "no channel in a call with a kind": (
        " to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [Message("assistant", "{}", "commentary", "functions.f", "<|constrain|>json")],
    ),
    "an empty channel": ("<|channel|><|message|>Hi<|return|>", [final("Hi")]),
    "an unknown channel": ("<|channel|>thoughts<|message|>Hi<|return|>", [final("Hi")]),
    "an unknown channel in a call": (
        "<|channel|>tools to=functions.f<|message|>{}<|call|>",
        [Message("assistant", "{}", "commentary", "functions.f")],
    ),
    "text before the channel": (f"Well, {F}Hi<|return|>", [final("Well, "), final("Hi")]),
    "text after the channel": (
        "<|channel|>final Hi there you<|message|>, all<|return|>",
        [final("final Hi there you, all")],
    ),
    "no message token": ("<|channel|>final Hi there<|return|>", [final("Hi there")]),
    "no message token, one word": (
        "<|channel|>analysis Hm<|end|><|start|>assistant" + F + "Hi",
        [final("Hm"), final("Hi")],
    ),
    "no message": ("<|channel|>commentary to=functions.f<|call|>", []),
    "two recipients": (
        " to=functions.f<|channel|>commentary to=functions.g<|message|>{}<|call|>",
        [final(" to=functions.fcommentary to=functions.g{}")],
    ),
    "two channels": (f"<|channel|>analysis{F}Hi<|return|>", [final("Hi")]),
    "a channel in a body": (f"{A}Think{F}Hi<|return|>", [Message("assistant", "Think", "analysis"), final("Hi")]),
    "a start in a body": (
        f"{A}Think<|start|>assistant{F}Hi<|return|>",
        [Message("assistant", "Think", "analysis"), final("Hi")],
    ),
    "a start in a header": (f"<|channel|>analysis<|start|>assistant{F}Hi<|return|>", [final("Hi")]),
    "no start": (f"{A}Think<|end|>assistant{F}Hi<|return|>", [Message("assistant", "Think", "analysis"), final("Hi")]),
    "neither start nor role": (
        f"{A}Think<|end|>{F}Hi<|return|>",
        [Message("assistant", "Think", "analysis"), final("Hi")],
    ),
    "no role": (f"{A}Think<|end|><|start|>{F}Hi", [Message("assistant", "Think", "analysis"), final("Hi")]),
    "the role of another": ("<|end|><|start|>user<|message|>Hi<|end|>", [final("userHi")]),
    "special tokens in a body": (f"{F}a<|message|>b<|constrain|>c<|endoftext|>d<|return|>", [final("abcd")]),
    "ends without a message": ("<|end|><|end|><|end|><|return|>", []),
    "after the end of the answer": (f"{F}Hi<|return|>{F}more", [final("Hi")]),
    "constrain before the channel": (
        " to=f <|constrain|>json<|channel|>commentary<|message|>{}",
        [Message("assistant", "{}", "commentary", "f")],
    ),
    "a kind of answer without constrain": (
        "<|channel|>final json<|message|>{}<|return|>",
        [Message("assistant", "{}", "final", None, "json")],
    ),
    "a commentary to the user": (f"{C}I look<|end|>", [Message("assistant", "I look", "commentary")]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_malformed_answers_become(real: HarmonyTokenizer, tiny: HarmonyTokenizer, case: str) -> None:
    text, expected = CASES[case]
    for tokenizer in (real, tiny):
        assert read(tokenizer, ids(tokenizer, text))[1] == expected


def test_a_long_header_is_text_as_soon_as_it_is_too_long(tiny: HarmonyTokenizer) -> None:
    """A model without the format streams then. Characters are whole also there."""
    parser = AnswerParser(tiny)
    text = "x" + "é" * LONGEST
    tokens = tiny.encode(text)
    for token in tokens[:LONGEST]:
        assert parser.push(token) == []
    (piece,) = parser.push(tokens[LONGEST])
    assert (piece.text, piece.channel, piece.begins, piece.ends) == ("x" + "é" * (LONGEST // 2), "final", True, False)
    for token in tokens[LONGEST + 1 :]:
        parser.push(token)
    parser.end()
    assert parser.messages == [final(text)]


@MANY
@given(data=st.data())
def test_random_tokens_never_raise(tiny: HarmonyTokenizer, data: st.DataObject) -> None:
    special = st.sampled_from([*CONTROL, *ENDS]).map(tiny.tokenizer.token_to_id)
    words = st.sampled_from(["assistant", " to=functions.f", "final", "analysis", "commentary", " json", "é", "a b c"])
    parts = st.one_of(
        special.map(lambda token: [token]), words.map(tiny.encode), st.integers(0, 600).map(lambda at: [at])
    )
    tokens = [token for part in data.draw(st.lists(parts, max_size=40)) for token in part]
    parser = AnswerParser(tiny)
    pieces = []
    for token in tokens:
        pieces += parser.push(token)
    pieces += parser.end()
    assert joined(pieces) == parser.messages
    assert all(message.channel in CHANNELS for message in parser.messages)
    assert not any(name in message.content for message in parser.messages for name in CONTROL_TOKENS.values())
    assert parser.finished == any(token in tiny.stop_tokens for token in tokens)


@MANY
@given(answer=st.lists(st.sampled_from([*CONTROL, "Words ", "a", "final", "assistant"]), max_size=20))
def test_no_text_of_a_body_is_lost(tiny: HarmonyTokenizer, answer: list[str]) -> None:
    """Digits, which no header holds, after a `<|message|>` come out in their order, whatever is around them."""
    text, expected = "", ""
    for index, part in enumerate(answer):
        text += f"{part}<|message|>{index}."
        expected += f"{index}."
    messages = read(tiny, ids(tiny, text))[1]
    assert "".join(char for message in messages for char in message.content if char in "0123456789.") == expected


def test_a_long_random_answer_is_quick(real: HarmonyTokenizer) -> None:
    """Time grows with the number of tokens alone: twenty times as many take less than sixty times as long."""
    draw = random.Random(5)
    control = [getattr(real, name) for name in ("start", "end", "message", "channel", "constrain")]
    tokens = [draw.choice(control) if draw.random() < 0.01 else draw.randrange(199_998) for _ in range(60_000)]

    def seconds(count: int) -> float:
        parser, start = AnswerParser(real), time.perf_counter()
        for token in tokens[:count]:
            parser.push(token)
        return time.perf_counter() - start

    seconds(3_000)
    assert seconds(60_000) < 60 * seconds(3_000) + 1
