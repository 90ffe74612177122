"""Schemas that cannot be enforced: what errors name, and what is too large. Strict and not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_specifications import REGISTRY
from structure_answers import RandomAnswer, accepts, messages_of
from structure_schemas import loads

from gptoss_export.errors import UsageError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import CallableTool, JsonSchema
from gptoss_export.structure.json_schema import (
    FORMATS,
    MOST_CHARACTERS,
    MOST_DEPTH,
    MOST_PATTERNS,
    MOST_STEPS,
    MOST_VALUES,
    UNSUPPORTED,
)
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


def refusal(structures: Structures, schema: Any, strict: bool = True) -> str:
    """The error for a schema; "" where there is none."""
    try:
        structures.of_answer(JsonSchema(schema, strict, "text.format.schema"))
    except UsageError as error:
        return str(error)
    return ""


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
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead and look-behind, is not supported"),
        ({"type": "string", "pattern": "[a"}, "unclosed character class"),
        ({"type": "string", "maxLength": 1, "minLength": 2}, r"minLength \(2\) is greater than maxLength \(1\)"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than maximum \(3\)"),
        ({"type": "number", "minimum": "ü" * 200}, "cannot be compiled"),
        ({"$ref": "#/$defs/none"}, "'/[$]defs/none' does not exist"),
        ({"$ref": "http://localhost/schema.json"}, "does not fetch resources"),
        ({"$ref": "file:///etc/hostname"}, "does not fetch resources"),
        ({"$ref": "#"}, "cannot be compiled"),
        ({"enum": []}, "anyOf is empty"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: alternatives that one document can obey"),
        ({"items": {"const": 2**53 + 1}}, r"#/items/const: found 9007199254740993, expected integers up to 2\*\*53"),
        ({"enum": [1, {"a": [-(2**60)]}]}, r"#/enum: found -1152921504606846976, expected integers up to"),
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
    assert "2**53" in refusal(small_structures, {"const": 2**60}, strict=False)


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


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth - 2):
        schema = {"type": "array", "items": schema}
    return schema


def chain(count: int) -> dict[str, Any]:
    """Objects that refer to each other: {"a": {"a": ...}}. The depth is 6."""
    each = {
        f"d{at}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{at + 1}"}}} for at in range(count - 1)
    }
    return {"$ref": "#/$defs/d0", "$defs": each | {f"d{count - 1}": {"type": "integer"}}}


def patterns(count: int) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {f"^{at:03}$": {"type": "integer"} for at in range(count)}}


@pytest.mark.parametrize(
    ("make", "most", "named"),
    [
        (
            lambda size: {"const": "a" * (size - 13)},
            MOST_CHARACTERS,
            "found 262145 characters, expected at most 262144",
        ),
        (lambda size: {"enum": list(range(size - 2))}, MOST_VALUES, "found 10001 values, expected at most 10000"),
        (nested, MOST_DEPTH, "found 101 values inside of each other, expected at most 100"),
        (chain, MOST_STEPS // 6, "as the depth of 6 times 334 places that [$]ref names, expected at most 2000"),
        (patterns, MOST_PATTERNS, "found 101 patternProperties, expected at most 100"),
    ],
)
def test_large_schemas_are_refused_before_they_are_compiled(
    small_structures: Structures, make: Callable[[int], Any], most: int, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        small_structures.of_answer(JsonSchema(make(most + 1)))


LARGEST = """
import json, sys, threading
from byte_tokenizers import TINY_SPECIAL, TINY_VOCABULARY, byte_tokenizer
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import JsonSchema
from gptoss_export.structure.structures import Structures
structures = Structures(HarmonyTokenizer.of(byte_tokenizer(TINY_SPECIAL), TINY_VOCABULARY), TINY_VOCABULARY)
def compile_all():
    for schema in json.load(sys.stdin):
        assert structures.of_answer(JsonSchema(schema))([]), schema
    print("compiled")
thread = threading.Thread(target=compile_all)
thread.start()
thread.join()
"""


def alternatives(count: int) -> dict[str, Any]:
    """As `chain`, with two ways to each next one. The depth is 10."""

    def each(at: int) -> dict[str, Any]:
        following = {"$ref": f"#/$defs/d{at + 1}"}
        optional = {"type": "object", "properties": {"a": {"anyOf": [following, {"type": "null"}]}}}
        return {"anyOf": [optional, {"type": "array", "items": following}]}

    last = {f"d{count - 1}": {"type": "integer"}}
    return {"$ref": "#/$defs/d0", "$defs": {f"d{at}": each(at) for at in range(count - 1)} | last}


def test_the_largest_schemas_end_no_process() -> None:
    """The library recurses along a schema, in a thread of a server, and a full stack ends a process."""
    schemas = [
        nested(MOST_DEPTH),
        chain(MOST_STEPS // 6),
        alternatives(MOST_STEPS // 10),
        patterns(MOST_PATTERNS),
        {"const": "a" * (MOST_CHARACTERS - 13)},
    ]
    done = subprocess.run(
        [sys.executable, "-c", LARGEST],
        input=json.dumps(schemas),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "compiled\n", (done.returncode, done.stderr[-500:])
