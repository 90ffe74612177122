"""Schemas that cannot be enforced: what errors name, and what is too large. Strict and not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_specifications import REGISTRY
from structure_answers import RandomAnswer, accepts, messages_of, refusal
from structure_schemas import loads

from gptoss_export.errors import UsageError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import CallableTool, JsonSchema
from gptoss_export.structure.json_schema import FORMATS, UNSUPPORTED
from gptoss_export.structure.structures import Structures

SAMPLES: dict[str, Any] = {
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames", "items", "additionalItems"), True),
    **{name: {} for name in ("dependentSchemas", "dependentRequired", "dependencies", "properties", "contentSchema")},
    **{name: {} for name in ("patternProperties", "$defs", "definitions", "$vocabulary")},
    **dict.fromkeys(("minContains", "maxContains", "minItems", "maxItems", "minLength", "maxLength"), 1),
    **dict.fromkeys(("minProperties", "maxProperties", "minimum", "maximum", "multipleOf", "default"), 1),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum", "divisibleBy"), 1),
    **{name: [True] for name in ("allOf", "anyOf", "oneOf", "prefixItems")},
    **dict.fromkeys(("uniqueItems", "unevaluatedItems", "unevaluatedProperties", "additionalProperties"), True),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "#"),
    "$recursiveAnchor": True,
    "$dynamicAnchor": "a",
    "$anchor": "a",
    "$id": "http://a/b",
    "$comment": "a",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$ref": "#/$defs/x",
    "title": "a",
    "description": "a",
    "deprecated": True,
    "readOnly": True,
    "writeOnly": True,
    "examples": [1],
    "contentEncoding": "a",
    "contentMediaType": "a",
    "format": "date",
    "pattern": "a",
    "required": ["a"],
    "type": "string",
    "const": "a",
    "enum": ["a"],
}


def keywords() -> set[str]:
    """Of the vocabularies of draft 2020-12, as jsonschema ships them."""
    found: set[str] = set()
    for part in jsonschema.Draft202012Validator.META_SCHEMA["allOf"]:
        found |= REGISTRY.contents("https://json-schema.org/draft/2020-12/" + part["$ref"])["properties"].keys()
    return found


def test_the_list_of_what_is_not_supported_is_the_librarys(small_structures: Structures) -> None:
    known = keywords() | {"dependencies", "definitions", "additionalItems", "$recursiveRef", "$recursiveAnchor"}
    assert len(known) > 50 and known <= SAMPLES.keys()
    for name in known:
        schema = {"$defs": {"x": True}} | {name: SAMPLES[name]}
        assert (f"#/{name}" in refusal(small_structures, schema)) == (name in UNSUPPORTED), name


def test_formats_that_are_enforced(small_structures: Structures) -> None:
    for name in (*FORMATS, *jsonschema.FormatChecker.checkers, "password", "int32"):
        found = refusal(small_structures, {"type": "array", "items": {"type": "string", "format": name}})
        assert (found == "") == (name in FORMATS), name
        assert name in FORMATS or f"#/items/format: found '{name}', expected one of date-time, date, time" in found


def test_all_problems_are_named_with_their_places(small_structures: Structures) -> None:
    schema = {
        "type": "object",
        "properties": {
            "a/b": {"type": "array", "items": {"type": "string", "format": "ipv7"}, "uniqueItems": True},
            "c": {"anyOf": [{"type": "integer"}, {"not": {"type": "string"}}]},
            "d": {"$ref": "#/$defs/d"},
        },
        "$defs": {"d": {"type": "object", "propertyNames": {}, "dependentRequired": {}}},
    }
    error = refusal(small_structures, schema)
    assert error.splitlines()[0].startswith("text.format.schema: parts cannot be enforced; remove them, or set strict")
    assert error.splitlines()[1:] == [
        "  - #/properties/a~1b/uniqueItems",
        "  - #/properties/a~1b/items/format: found 'ipv7', expected one of " + ", ".join(FORMATS),
        "  - #/properties/c/anyOf/1/not",
        "  - #/$defs/d/dependentRequired",
        "  - #/$defs/d/propertyNames",
    ]


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": 5}, "type must be a string or array of strings"),
        ({"properties": 5}, "properties must be an object"),
        ({"type": "string", "maxLength": -1}, "Expected positive integer for 'maxLength', got -1"),
        ({"type": "string", "pattern": "(?=a)b"}, r"#/pattern: found '\(\?=a\)b': .*look-behind, is not supported"),
        ({"items": {"type": "string", "pattern": "[a"}}, r"#/items/pattern: found '\[a': .*unclosed character class"),
        ({"patternProperties": {"a": {}, "[b": {}}}, r"#/patternProperties: found '\[b': .*unclosed character class"),
        ({"properties": {"a": {"multipleOf": 1e-20}}}, "#/properties/a/multipleOf: found 1e-20: .*too many digits"),
        ({"type": "string", "maxLength": 1, "minLength": 2}, r"minLength \(2\) is greater than maxLength \(1\)"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than maximum \(3\)"),
        ({"type": "number", "minimum": "ü" * 200}, "cannot be compiled"),
        ({"$ref": "#/$defs/none"}, "'/[$]defs/none' does not exist"),
        ({"$ref": "http://localhost/schema.json"}, "does not fetch resources"),
        ({"$ref": "file:///etc/hostname"}, "does not fetch resources"),
        ({"$ref": "#"}, "#: requires itself without end"),
        ({"enum": []}, "anyOf is empty"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: alternatives that one document can obey"),
        ({"items": {"const": 2**53 + 1}}, r"#/items/const: found 9007199254740993, expected integers from -2\*\*53 to"),
        ({"enum": [1, {"a": [-(2**60)]}]}, r"#/enum: found -1152921504606846976, expected integers from -2\*\*53 to"),
        ({"maximum": 2**53 + 1}, r"#/maximum: found 9007199254740993, expected a bound from -2\*\*53 to 2\*\*53"),
        ({"items": {"minimum": -(2**63)}}, "#/items/minimum: found -9223372036854775808, expected a bound"),
        ({"exclusiveMaximum": 1e20}, "#/exclusiveMaximum: found 1e.20, expected a bound"),
        ({"exclusiveMinimum": -1e300}, "#/exclusiveMinimum: found -1e.300, expected a bound"),
        ({"const": float("nan")}, "found what is no JSON"),
        ({"const": {1, 2}}, "found what is no JSON"),
        ({"const": "\ud800"}, "cannot be compiled"),
        ([], "expected an object, which a JSON schema is"),
    ],
)
def test_what_is_no_schema_is_named(small_structures: Structures, schema: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named) as raised:
        small_structures.of_answer(JsonSchema(schema, field="text.format.schema"))
    assert "text.format.schema: " in str(raised.value) and "guidance" not in str(raised.value)
    assert len(str(raised.value)) < 1000


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["string", "#", "object"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(SAMPLES)), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=st.dictionaries(st.sampled_from(sorted(SAMPLES)), VALUES, max_size=5), strict=st.booleans())
def test_any_schema_is_enforced_or_refused(small_structures: Structures, schema: dict[str, Any], strict: bool) -> None:
    error = refusal(small_structures, schema, strict)
    assert error == "" or "text.format.schema: " in error
    if error == "":
        mask = small_structures.of_answer(JsonSchema(schema, strict))(())
        assert any(mask)


def test_a_refused_schema_leaves_the_others_alone(small: HarmonyTokenizer, small_structures: Structures) -> None:
    assert refusal(small_structures, {"type": "number", "minimum": "ü" * 200})
    tokens = RandomAnswer(small, 1).of(small_structures.of_answer(JsonSchema({"const": [1]})))
    assert loads(messages_of(small, tokens)[-1].content) == [1]


def test_without_strict_the_rest_is_enforced(small: HarmonyTokenizer, small_structures: Structures) -> None:
    schema = {
        "type": "array",
        "items": {"oneOf": [{"type": "integer"}, {"type": "number"}, {"type": "string", "format": "ipv7"}]},
        "uniqueItems": True,
        "maxItems": 3,
    }
    assert "#/uniqueItems" in refusal(small_structures, schema)
    for text, good in (('[1, 1, "x"]', True), ("[null]", False), ("[1, 2, 3, 4]", False)):
        allowed = small_structures.of_answer(JsonSchema(schema, strict=False))
        assert accepts(allowed, small, f"<|channel|>final<|message|>{text}<|return|>") == good, text
    assert "Invalid type" in refusal(small_structures, {"type": "strin"}, strict=False)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": 2**60}, "[1]", "[1"),
        ({"type": "string", "maxLength": 2, "pattern": "^(?=.*[0-9]).+$"}, '"ab"', '"abc"'),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "-7", "1.5"),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, "18446744073709551615", "-1"),
        ({"type": "number", "multipleOf": 1e-20, "maximum": 3}, "0.05", "4"),
        ({"type": "object", "patternProperties": {"[a": {}, "^b$": {"type": "null"}}}, '{"b":null}', '{"b":1}'),
    ],
)
def test_without_strict_values_that_cannot_be_enforced_are_ignored(
    small: HarmonyTokenizer, small_structures: Structures, schema: dict[str, Any], good: str, bad: str
) -> None:
    given = json.dumps(schema)
    for text, right in ((good, True), (bad, False)):
        allowed = small_structures.of_answer(JsonSchema(schema, strict=False))
        assert accepts(allowed, small, f"<|channel|>final<|message|>{text}<|return|>") == right, text
    assert json.dumps(schema) == given and refusal(small_structures, schema)


def test_options_in_a_schema_are_not_the_librarys(small: HarmonyTokenizer, small_structures: Structures) -> None:
    """The library reads options from a schema, and a caller's schema sets none."""
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True, "whitespace_pattern": "x+"}}
    assert "#/uniqueItems" in refusal(small_structures, schema)
    del schema["uniqueItems"]
    allowed = small_structures.of_answer(JsonSchema(schema))
    assert not accepts(allowed, small, "<|channel|>final<|message|>[xx]<|return|>")


def test_parameters_are_of_an_object(small_structures: Structures) -> None:
    tool = CallableTool("get", {"type": "array"}, strict=True)
    with pytest.raises(UsageError, match="parameters of the tool get: found the type 'array', expected \"object\""):
        small_structures.of_answer(None, [tool])
    tool = CallableTool("get", {"uniqueItems": True}, strict=True)
    with pytest.raises(UsageError, match=r"(?s)parameters of the tool get: parts.*#/uniqueItems"):
        small_structures.of_answer(None, [tool])
