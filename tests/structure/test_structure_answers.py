"""Answers around their documents: headers, free text, choices of tools, the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from structure_answers import RandomAnswer, accepts, allowed_ids, has, messages_of, refused, text_of, tokens_of
from structure_schemas import loads, obeys

from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import UsageError
from gptoss_export.harmony.vocabulary import CONTROL_TOKENS, HarmonyTokenizer
from gptoss_export.structure.formats import CallableTool, Format, JsonObject, JsonSchema
from gptoss_export.structure.structures import Structures

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
STRICT, LOOSE = CallableTool("get", SCHEMA, strict=True), CallableTool("get_weather", SCHEMA)
TOOLS = (STRICT, LOOSE)
FINAL = "<|channel|>final<|message|>"
HEADERS = [
    "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.{}<|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.{} json<|message|>",
    "<|channel|>commentary to=functions.{}<|message|>",
    " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.{}<|channel|>commentary json<|message|>",
    " to=functions.{}<|channel|>commentary<|message|>",
]
THOUGHT = '<|channel|>analysis<|message|>One moment: "{{]" \\ 日本語 😀\n\n<p>…</p><|end|><|start|>assistant'
REMARK = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant"


def accepted(
    control: HarmonyTokenizer,
    structures: Structures,
    text: str,
    final: Format | None = None,
    tools: Sequence[CallableTool] = TOOLS,
    choice: str = "auto",
) -> bool:
    return accepts(structures.of_answer(final, tools, choice), control, text)


@pytest.mark.parametrize(
    "before", ["", THOUGHT, REMARK, THOUGHT + THOUGHT + REMARK], ids=["", "thought", "remark", "all"]
)
@pytest.mark.parametrize("header", [FINAL, "<|channel|>final <|constrain|>json<|message|>"])
def test_a_final_message_follows_any_free_messages(
    control: HarmonyTokenizer, structures: Structures, before: str, header: str
) -> None:
    answer = tokens_of(control, before + header + '{"n": 12}<|return|>')
    assert refused(structures.of_answer(JsonSchema(SCHEMA)), answer) is None
    messages = messages_of(control, answer)
    assert (messages[-1].channel, messages[-1].content) == ("final", '{"n": 12}')
    assert [message.channel for message in messages[:-1]].count("analysis") == before.count("analysis")


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("before", ["", THOUGHT], ids=["", "thought"])
def test_both_orders_of_a_calls_header(
    control: HarmonyTokenizer, structures: Structures, before: str, header: str
) -> None:
    for name, arguments in (("get", '{"n": 1}'), ("get_weather", '{"where": ["Oslo"]}')):
        answer = tokens_of(control, before + header.format(name) + arguments + "<|call|>")
        assert refused(structures.of_answer(None, TOOLS), answer) is None
        call = messages_of(control, answer)[-1]
        assert (call.channel, call.recipient, call.content) == ("commentary", f"functions.{name}", arguments)


@pytest.mark.parametrize("header", HEADERS)
def test_a_call_of_the_longest_name(small: HarmonyTokenizer, small_structures: Structures, header: str) -> None:
    """The parser, too, takes a header so long for one, also after another message."""
    name = "q0" * 64
    answer = tokens_of(small, THOUGHT + header.format(name) + "{}<|call|>")
    assert refused(small_structures.of_answer(None, [CallableTool(name)], "required"), answer) is None
    assert messages_of(small, answer)[-1].recipient == f"functions.{name}"


@pytest.mark.parametrize(
    "text",
    [
        HEADERS[0].format("get") + '{"n": "1"}<|call|>',  # not an integer
        HEADERS[0].format("get") + '{"n": 1}<|return|>',
        HEADERS[0].format("get") + '{"n": 1}<|end|>',
        HEADERS[0].format("get_weather") + "[1]<|call|>",
        HEADERS[0].format("get_time") + "{}<|call|>",
        HEADERS[0].format("") + "{}<|call|>",
        "<|channel|>commentary to=python <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>analysis to=functions.get<|message|>" + '{"n": 1}<|call|>',
        " to=functions.get<|channel|>commentary to=functions.get<|message|>" + '{"n": 1}<|call|>',
        "<|channel|>final to=functions.get<|message|>" + '{"n": 1}<|call|>',
        "<|channel|>thoughts<|message|>",
        "<|message|>Hello<|return|>",
        "Hello<|return|>",
        "<|start|>assistant" + FINAL,
        "<|channel|>analysis<|message|>Hm<|return|>",
        "<|channel|>analysis<|message|>Hm<|call|>",
        "<|channel|>analysis<|message|>Hm<|start|>assistant",
        "<|channel|>analysis<|message|>Hm<|channel|>final<|message|>",
        "<|channel|>analysis<|message|>Hm<|end|><|channel|>final<|message|>",
        "<|channel|>analysis<|message|>Hm<|end|><|start|>user<|message|>",
        "<|channel|>final<|constrain|>xml<|message|>",
        FINAL + "Hello<|end|>",
    ],
)
def test_other_answers_are_refused(small: HarmonyTokenizer, small_structures: Structures, text: str) -> None:
    assert not accepted(small, small_structures, text)


CALL_STRICT = HEADERS[0].format("get") + '{"n": 1}<|call|>'
CALL_LOOSE = HEADERS[4].format("get_weather") + '{"m": 1}<|call|>'
HELLO, JSON = FINAL + "Hello<|return|>", FINAL + '{"n": 1}<|return|>'


@pytest.mark.parametrize(
    ("final", "choice", "good"),
    [
        (None, "auto", {CALL_STRICT, CALL_LOOSE, HELLO, JSON}),
        (None, "none", {HELLO, JSON}),
        (None, "required", {CALL_STRICT, CALL_LOOSE}),
        (None, "get", {CALL_STRICT}),
        (None, "get_weather", {CALL_LOOSE}),
        (JsonSchema(SCHEMA), "auto", {CALL_STRICT, CALL_LOOSE, JSON}),
        (JsonSchema(SCHEMA), "none", {JSON}),
        (JsonObject(), "required", {CALL_STRICT, CALL_LOOSE}),
        (JsonObject(), "get", {CALL_STRICT}),
    ],
)
def test_choices(
    small: HarmonyTokenizer, small_structures: Structures, final: Format | None, choice: str, good: set[str]
) -> None:
    for answer in (CALL_STRICT, CALL_LOOSE, HELLO, JSON):
        for before in ("", THOUGHT, REMARK):
            found = accepted(small, small_structures, before + answer, final, choice=choice)
            assert found == (answer in good), before + answer


def test_nothing_is_enforced_where_nothing_is_asked_for(small_structures: Structures) -> None:
    of_answer = small_structures.of_answer
    assert of_answer(None) is None and of_answer(None, choice="none") is None
    assert of_answer(None, [LOOSE]) is None
    assert of_answer(None, [LOOSE, STRICT]) is not None and of_answer(None, [LOOSE], "none") is not None
    assert of_answer(None, [LOOSE], "required") is not None and of_answer(None, [LOOSE], "get_weather") is not None
    assert of_answer(JsonObject()) is not None


def test_random_answers_make_choices(control: HarmonyTokenizer, structures: Structures) -> None:
    """Calls of both tools and final messages come, and each obeys its own format."""
    seen = set()
    for seed in range(60):
        tokens = RandomAnswer(control, seed).of(structures.of_answer(JsonObject(), TOOLS))
        last = messages_of(control, tokens)[-1]
        seen.add(last.recipient)
        document = loads(last.content)
        assert isinstance(document, dict) and tokens[-1] == (control.call if last.recipient else control.return_)
        if last.recipient == "functions.get":
            assert last.channel == "commentary" and obeys(SCHEMA, document)
    assert seen == {None, "functions.get", "functions.get_weather"}


def test_strict_tools_without_parameters_take_none(small: HarmonyTokenizer, small_structures: Structures) -> None:
    tools = [CallableTool("now", strict=True), CallableTool("later", {"properties": {"n": {"const": 1}}}, strict=True)]
    for name, arguments, good in (
        *(("now", "{}", True), ("now", '{"a": 1}', False)),
        *(("later", '{"n": 1}', True), ("later", '{"n": 2}', False), ("later", "1", False)),
    ):
        text = HEADERS[0].format(name) + arguments + "<|call|>"
        assert accepted(small, small_structures, text, tools=tools) == good, text


def test_control_tokens_are_in_no_text(control: HarmonyTokenizer, structures: Structures) -> None:
    """Their names can be written in it, as they can be in a prompt."""
    specials = {token for token, content in control.tokenizer.get_added_tokens_decoder().items() if content.special}
    names = "".join(CONTROL_TOKENS.values())
    spelled = control.encode(names)
    assert specials.isdisjoint(spelled)
    for opening, end in (
        ("<|channel|>analysis<|message|>", {control.end}),
        ("<|channel|>commentary<|message|>", {control.end}),
        (FINAL + '{"a": "', set()),
    ):
        tokens = tokens_of(control, opening)
        allowed = structures.of_answer(JsonObject())
        for token in (*spelled, *control.encode("no control token")):
            mask = allowed(tokens)
            assert {special for special in specials if has(mask, special)} == end
            assert has(mask, token)
            tokens.append(token)
    tokens = tokens_of(control, FINAL)
    free = structures.of_answer(None, TOOLS)
    assert specials & set(allowed_ids(free(tokens))) == {control.return_}


def test_free_text_is_all_text(control: HarmonyTokenizer, structures: Structures) -> None:
    mask = structures.of_answer(JsonObject())(tokens_of(control, "<|channel|>analysis<|message|>"))
    texts = [token for token in control.tokenizer.get_vocab().values() if not control.text.leaves_out(token)]
    assert allowed_ids(mask) == sorted([*texts, control.end])


def test_masks_have_a_bit_for_each_token_of_the_model(real: HarmonyTokenizer, real_structures: Structures) -> None:
    """Ids that the tokenizer lacks are in none of them."""
    vocabulary, known = PRESETS["20b"].vocab_size, real.tokenizer.get_vocab_size()
    assert known < vocabulary
    allowed = real_structures.of_answer(JsonObject(), TOOLS)
    answer = tokens_of(real, THOUGHT + FINAL + '{"a": "b", "c": [1.5, true]}<|return|>')
    for length in range(len(answer) + 1):
        mask = allowed(answer[:length])
        assert len(mask) == vocabulary // 8
        assert 0 < int.from_bytes(mask, "little") < 1 << known


def test_a_model_of_a_few_tokens_more_than_words(small: HarmonyTokenizer) -> None:
    """600 tokens are 19 words, whose last bits are no tokens."""
    allowed = Structures(small, 600).of_answer(JsonObject())
    answer = tokens_of(small, THOUGHT + FINAL + '{"a": "b"}<|return|>')
    for length in range(len(answer) + 1):
        mask = allowed(answer[:length])
        assert len(mask) == 76 and 0 < int.from_bytes(mask, "little") < 1 << 512


def test_an_ended_answer_allows_the_tokens_that_end_it(control: HarmonyTokenizer, structures: Structures) -> None:
    for text in (FINAL + "Hello<|return|>", CALL_STRICT):
        allowed, answer = structures.of_answer(None, TOOLS), tokens_of(control, text)
        assert set(allowed_ids(allowed(answer))) == set(control.stop_tokens)
        assert set(allowed_ids(allowed([*answer, control.return_]))) == set(control.stop_tokens)


def test_the_model_decides_into_which_tokens_text_is_split(real: HarmonyTokenizer, real_structures: Structures) -> None:
    letters = [token for letter in "analysis" for token in real.encode(letter)]
    assert len(letters) > len(real.encode("analysis"))
    answer = [real.channel, *letters, real.message]
    assert refused(real_structures.of_answer(JsonObject()), answer) is None, text_of(real, answer)


@pytest.mark.parametrize(
    ("tools", "choice", "named"),
    [
        ([], "required", '"required" without tools'),
        ([], "get", "found 'get', expected one of no tools"),
        (TOOLS, "got", "found 'got', expected one of get, get_weather"),
        ([STRICT, STRICT], "auto", "found 'get' a second time"),
        ([CallableTool("a b")], "required", "found the name 'a b', expected 1 to 128"),
        ([CallableTool("a<|end|>")], "required", "expected 1 to 128"),
        ([CallableTool("ä")], "required", "expected 1 to 128"),
        ([CallableTool("")], "required", "found the name ''"),
    ],
)
def test_wrong_tools_are_named(
    small_structures: Structures, tools: Sequence[CallableTool], choice: str, named: str
) -> None:
    with pytest.raises(UsageError, match=named.replace("|", r"\|")):
        small_structures.of_answer(None, tools, choice)
