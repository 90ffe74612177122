"""Documents: those that a schema admits are accepted token by token, and random answers are documents that obey it."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from structure_answers import RandomAnswer, accepts, messages_of, refused, text_of, tokens_of
from structure_schemas import Case, cases, finite, forms, loads, obeys

from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import CallableTool, JsonObject, JsonSchema
from gptoss_export.structure.structures import Structures

FINAL = "<|channel|>final<|message|>"
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


def document_accepted(control: HarmonyTokenizer, structures: Structures, schema: dict[str, Any], text: str) -> bool:
    return accepts(structures.of_answer(JsonSchema(schema)), control, f"{FINAL}{text}<|return|>")


@settings(max_examples=60, **QUIET)
@given(case=cases(), data=st.data())
def test_every_document_of_a_schema_is_accepted(
    control: HarmonyTokenizer, structures: Structures, case: Case, data: st.DataObject
) -> None:
    document = data.draw(case.documents)
    assert obeys(case.schema, document), "the strategies are wrong"
    for form in forms(document):
        tokens = tokens_of(control, FINAL + form + "<|return|>")
        at = refused(structures.of_answer(JsonSchema(case.schema)), tokens)
        assert at is None, f"{text_of(control, tokens[:at])!r} cannot go on with {text_of(control, tokens[at:])!r}"


@settings(max_examples=60, **QUIET)
@given(case=cases(open_objects=False), seed=st.integers(0, 2**32))
def test_random_answers_obey_the_schema(
    control: HarmonyTokenizer, structures: Structures, case: Case, seed: int
) -> None:
    tokens = RandomAnswer(control, seed).of(structures.of_answer(JsonSchema(case.schema)))
    *others, final = messages_of(control, tokens)
    assert final.channel == "final" and all(other.channel in ("analysis", "commentary") for other in others)
    document = loads(final.content)
    assert obeys(case.schema, document) or not finite(document), final.content


class Shade(enum.Enum):
    LIGHT = "light"
    DARK = "dark"


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, le=100)


class Polygon(BaseModel):
    kind: Literal["polygon"]
    corners: list[tuple[int, int]] = Field(min_length=3, max_length=5)
    shade: Shade | None


class Drawing(BaseModel):
    title: str = Field(min_length=1, max_length=20, pattern="^[A-Z][a-z ]*$")
    shapes: list[Circle | Polygon] = Field(max_length=3)
    parts: list[Drawing] = Field(max_length=1)


def test_random_answers_are_models_of_pydantic(control: HarmonyTokenizer, structures: Structures) -> None:
    """The schema as OpenAI's client sends it for a strict tool: closed objects, all names required, references."""
    sent = openai.pydantic_function_tool(Drawing)["function"]
    assert sent["strict"] and "$defs" in sent["parameters"]
    tool = CallableTool(sent["name"], sent["parameters"], strict=True)
    for seed in range(10):
        tokens = RandomAnswer(control, seed).of(structures.of_answer(None, [tool], "required"))
        call = messages_of(control, tokens)[-1]
        assert call.recipient == "functions.Drawing" and tokens[-1] == control.call
        Drawing.model_validate_json(call.content)


def test_random_answers_are_json_objects(control: HarmonyTokenizer, structures: Structures) -> None:
    for seed in range(20):
        tokens = RandomAnswer(control, seed).of(structures.of_answer(JsonObject()))
        assert isinstance(loads(messages_of(control, tokens)[-1].content), dict)


@pytest.mark.parametrize(
    "text",
    ["{}", '{"a": 1e5}', '{"a": [[], {"b": null}]}', '{"caf\\u00e9": "\\ud83d\\ude00 \\u007f", "é": "\\n\\"\\\\"}'],
)
def test_any_object_is_any_object(control: HarmonyTokenizer, structures: Structures, text: str) -> None:
    assert isinstance(json.loads(text), dict)
    assert accepts(structures.of_answer(JsonObject()), control, f"{FINAL}{text}<|return|>")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[]",
            "1",
            '"a"',
            "null",
            "",
            " {}",
            "{} ",
            "{}{}",
            "{a: 1}",
            "{'a': 1}",
            '{"a": 1,}',
            '{"a" 1}',
            '{"a": 01}',
        ),
        *('{"a": NaN}', '{"a": Infinity}', '{"a": +1}', '{"a": .5}', '{"a": "\t"}', '{"a": "\\x"}', '{"a": "\\ud83d"}'),
        *("```json\n{}\n```", '{"a": 1} // one', '{"a": "b}'),
    ],
)
def test_nothing_else_is_an_object(small: HarmonyTokenizer, small_structures: Structures, text: str) -> None:
    assert not accepts(small_structures.of_answer(JsonObject()), small, f"{FINAL}{text}<|return|>")


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = OPEN | {"additionalProperties": False}
NESTED = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (CLOSED, ["{}", '{"a": 1}'], ['{"a": 1.5}', '{"a": "1"}', '{"b": 1}', '{"a": 1, "a": 2}', '{"a": null}']),
        (OPEN, ["{}", '{"b": "x"}', '{"a": 1, "b": "x"}'], ['{"a": "x"}', '{"b": 1, "a": 2}']),
        ({"type": "object", "required": ["z"]}, ['{"z": 1}', '{"z": 1, "a": 2}'], ["{}", '{"a": 1}']),
        ({"type": ["integer", "null"]}, ["null", "-0", "12"], ["1.5", "true", '"1"', "1e3", "00"]),
        ({"const": 'a"b'}, ['"a\\"b"'], ['"a"', '"ab"']),
        ({"enum": [1, "x", None, [2], {"k": 0}]}, ["1", '"x"', "null", "[2]", '{"k": 0}'], ["2", '"y"', "[1]", "{}"]),
        ({"type": "string", "pattern": "b{2}"}, ['"abba"', '"bb"'], ['"aba"', '""']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"', '"😀😀"'], ['"a"', '"abcd"', '"😀"']),
        ({"type": "integer", "multipleOf": 7}, ["0", "-14", "21"], ["3", "-15", "6"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, ["2.5", "0.001", "1"], ["0", "2.51", "-1", "3"]),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
            ["[null]"],
            ["[]", "[null, null, null]"],
        ),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, ["[]", "[1]"], ["[2]", "[1, 1]"]),
        (NESTED, ["[]", "[[], [[]]]"], ["[1]", "{}", "[[], null]"]),
        ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, ["3", "5"], ["2", "6", "4.0"]),
        ({"anyOf": [{"type": "integer"}, {"const": "x"}]}, ["1", '"x"'], ['"y"', "1.5"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"x"'], ["null"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-02-30"', '"2024-13-01"', '"24-01-01"']),
        ({"type": "string", "format": "uuid"}, ['"12345678-1234-5678-1234-567812345678"'], ['"1234"', '""']),
        ({"type": "object", "minProperties": 1, "maxProperties": 1}, ['{"a": 1}'], ["{}", '{"a": 1, "b": 2}']),
        ({"type": "object", "patternProperties": {"^n": {"type": "null"}}}, ['{"n1": null, "m": 1}'], ['{"n1": 1}']),
    ],
)
def test_keywords_are_enforced(
    small: HarmonyTokenizer, small_structures: Structures, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert obeys(schema, loads(text))
        assert document_accepted(small, small_structures, schema, text), text
    for text in bad:
        assert not document_accepted(small, small_structures, schema, text), text


ARRAY = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize("space", [" ", "\n", "\n  ", "\n" + 32 * " "])
def test_white_space_that_documents_have(small: HarmonyTokenizer, small_structures: Structures, space: str) -> None:
    assert document_accepted(small, small_structures, ARRAY, f"[{space}1,{space}2{space}]")


@pytest.mark.parametrize("space", ["  ", "\n\n", "\n" + 33 * " ", " \n", "\t", "\r\n"])
def test_white_space_has_an_end(small: HarmonyTokenizer, small_structures: Structures, space: str) -> None:
    assert not document_accepted(small, small_structures, ARRAY, f"[1,{space}2]")
