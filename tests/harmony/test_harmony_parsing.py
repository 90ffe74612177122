"""Well-formed answers are read as by openai-harmony, after every token, and as they were written."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from byte_tokenizers import byte_symbols
from harmony_strategies import MANY, names, recipients, texts
from hypothesis import given
from hypothesis import strategies as st
from openai_harmony import HarmonyEncoding, StreamableParser
from openai_harmony import Role as OracleRole

from gptoss_export.harmony.messages import CHANNELS, Message
from gptoss_export.harmony.parsing import AnswerParser, Piece
from gptoss_export.harmony.rendering import message_tokens
from gptoss_export.harmony.vocabulary import HarmonyTokenizer

ORDERS = ("role", "channel")  # sections of a header in which the recipient can be

channels = st.sampled_from(CHANNELS)
said = st.builds(Message, st.just("assistant"), texts, channels)
calls = st.builds(
    Message,
    st.just("assistant"),
    texts,
    channels,
    recipients | names | st.just("python"),
    st.sampled_from([None, "<|constrain|>json", "json", "code"]),
)
answers = st.lists(st.tuples(said | calls, st.sampled_from(ORDERS), st.booleans()), min_size=1, max_size=4)


def header_tokens(tokenizer: HarmonyTokenizer, message: Message, order: str, spaced: bool) -> list[int]:
    """A header after `<|start|>assistant`, as models write them: the recipient in either section, a space or none
    before `<|constrain|>`."""
    to = [] if message.recipient is None else tokenizer.encode(f" to={message.recipient}")
    kind: list[int] = []
    if message.content_type is not None:
        word = message.content_type.removeprefix("<|constrain|>")
        if word != message.content_type:
            kind = [*(tokenizer.encode(" ") if spaced else []), tokenizer.constrain, *tokenizer.encode(word)]
        else:
            kind = tokenizer.encode(f" {word}")
    channel = [tokenizer.channel, *tokenizer.encode(message.channel or "")]
    return [*to, *channel, *kind] if order == "role" else [*channel, *to, *kind]


def answer_tokens(tokenizer: HarmonyTokenizer, answer: Iterable[tuple[Message, str, bool]]) -> list[int]:
    """What a model generates after `<|start|>assistant`, without the token that ends the last message."""
    tokens: list[int] = []
    for message, order, spaced in answer:
        if tokens:
            tokens += [tokenizer.end, tokenizer.start, *tokenizer.encode("assistant")]
        tokens += header_tokens(tokenizer, message, order, spaced)
        tokens += [tokenizer.message, *tokenizer.encode(message.content)]
    return tokens


def joined(pieces: Iterable[Piece]) -> list[Message]:
    """The messages that pieces make. Every message has one beginning, one end, and one header."""
    found: list[Message] = []
    open_index = None
    for piece in pieces:
        header = (piece.channel, piece.recipient, piece.content_type)
        if piece.begins:
            assert open_index is None
            assert piece.message == len(found)
            open_index = piece.message
            found.append(Message("assistant", "", *header))
        assert piece.message == open_index
        last = found[-1]
        assert header == (last.channel, last.recipient, last.content_type)
        assert piece.text or piece.begins or piece.ends
        found[-1] = Message("assistant", last.content + piece.text, *header)
        open_index = None if piece.ends else open_index
    assert open_index is None
    return found


def read(tokenizer: HarmonyTokenizer, tokens: Iterable[int]) -> tuple[AnswerParser, list[Message]]:
    parser = AnswerParser(tokenizer)
    pieces = [piece for token in tokens for piece in parser.push(token)] + parser.end()
    assert joined(pieces) == parser.messages
    return parser, parser.messages


@MANY
@given(answer=answers, ending=st.sampled_from(["return_", "call", "end", None]))
def test_answers_are_read_as_by_the_oracle(
    real: HarmonyTokenizer,
    oracle: HarmonyEncoding,
    answer: list[tuple[Message, str, bool]],
    ending: str | None,
) -> None:
    parser, reference = AnswerParser(real), StreamableParser(oracle, OracleRole.ASSISTANT)
    tokens = answer_tokens(real, answer) + ([] if ending is None else [getattr(real, ending)])
    pieces: list[Piece] = []
    body: list[int] = []
    for token in tokens:
        reference.process(token)
        pieces += parser.push(token)
        if reference.current_channel is None:  # in a header, or between messages
            body.clear()
        elif token != real.message:
            body.append(token)
        if reference.current_channel is not None:
            said = parser.messages[-1]
            assert said.channel == reference.current_channel
            assert said.recipient == reference.current_recipient
            assert said.content_type == reference.current_content_type
            # A token that ends in a part of a character is held back as a whole.
            ends = not real.text.decode(body).endswith("\ufffd")
            assert (
                said.content == reference.current_content
                if ends
                else reference.current_content.startswith(said.content)
            )
    reference.process_eos()
    pieces += parser.end()
    expected = [
        Message(
            "assistant",
            "".join(part.text for part in found.content),
            found.channel,
            found.recipient,
            found.content_type,
        )  # type: ignore[attr-defined]
        for found in reference.messages
    ]
    assert joined(pieces) == parser.messages == expected
    assert parser.messages == [message for message, _, _ in answer]
    assert parser.finished == (ending in ("return_", "call"))


@MANY
@given(answer=answers)
def test_the_tiny_vocabulary_reads_the_same(tiny: HarmonyTokenizer, answer: list[tuple[Message, str, bool]]) -> None:
    """Every character of several bytes comes in parts here."""
    parser, messages = read(tiny, [*answer_tokens(tiny, answer), tiny.return_])
    assert messages == [message for message, _, _ in answer]
    assert parser.finished


@MANY
@given(message=said | calls)
def test_a_message_that_was_written_is_read(real: HarmonyTokenizer, message: Message) -> None:
    """In the form in which it is written into the next prompt."""
    prefix = [real.start, *real.encode("assistant")]
    tokens = message_tokens(message, real)
    assert tokens[: len(prefix)] == prefix
    parser, messages = read(real, tokens[len(prefix) :])
    assert messages == [message]
    assert parser.finished == (message.recipient is not None)


def test_pieces_come_with_the_token_that_makes_them_certain(tiny: HarmonyTokenizer) -> None:
    """The two bytes of a character, then the end."""
    first, second = tiny.encode("é")
    parser = AnswerParser(tiny)
    for token in [tiny.channel, *tiny.encode("final")]:
        assert parser.push(token) == []
    assert parser.push(tiny.message) == [Piece(0, "final", None, None, "", True, False)]
    assert parser.push(first) == []
    assert parser.push(second) == [Piece(0, "final", None, None, "é", False, False)]
    assert parser.push(tiny.return_) == [Piece(0, "final", None, None, "", False, True)]
    assert parser.finished
    assert parser.push(first) == parser.end() == []


def test_an_answer_that_ends_in_a_character(tiny: HarmonyTokenizer) -> None:
    """Also where the next message begins: the half of a character stays in its message."""
    first = byte_symbols()
    half = tiny.tokenizer.token_to_id(first[0xE2])
    body = [tiny.channel, *tiny.encode("final"), tiny.message, *tiny.encode("ab"), half]
    assert read(tiny, body)[1] == [Message("assistant", "ab\ufffd", "final")]
    twice = [*body, tiny.end, tiny.start, *tiny.encode("assistant"), *body[:-1], tiny.return_]
    assert read(tiny, twice)[1] == [Message("assistant", "ab\ufffd", "final"), Message("assistant", "ab", "final")]


def test_a_constrained_answer_has_a_content_type_and_no_recipient(
    real: HarmonyTokenizer, oracle: HarmonyEncoding
) -> None:
    """openai-harmony takes the kind of an answer for a recipient. The answer would be a call of a function that nobody
    declared."""
    tokens = [
        real.channel,
        *real.encode("final"),
        *real.encode(" "),
        real.constrain,
        *real.encode("json"),
        real.message,
    ]
    reference = StreamableParser(oracle, OracleRole.ASSISTANT)
    for token in tokens:
        reference.process(token)
    assert reference.current_recipient == "<|constrain|>json"
    assert read(real, tokens)[1] == [Message("assistant", "", "final", None, "<|constrain|>json")]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("commentary functions.f", ("functions.f", None)),
        ("commentary functions.f json", ("functions.f", "json")),
        ("commentary to=functions.f code", ("functions.f", "code")),
        ("analysis", (None, None)),
    ],
)
def test_words_of_a_header_without_to(
    real: HarmonyTokenizer, oracle: HarmonyEncoding, header: str, expected: tuple[str | None, str | None]
) -> None:
    tokens = [real.channel, *real.encode(header), real.message]
    reference = StreamableParser(oracle, OracleRole.ASSISTANT)
    for token in tokens:
        reference.process(token)
    (message,) = read(real, tokens)[1]
    found = (message.recipient, message.content_type)
    assert found == expected == (reference.current_recipient, reference.current_content_type)
