"""Schemas that are too large to be compiled, too wide to be followed, and those that no finite document obeys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from structure_answers import RandomAnswer, refusal

from gptoss_export.errors import UsageError
from gptoss_export.harmony.vocabulary import HarmonyTokenizer
from gptoss_export.structure.formats import JsonSchema
from gptoss_export.structure.schema_size import (
    MOST_ALTERNATIVES,
    MOST_CHARACTERS,
    MOST_DEPTH,
    MOST_PATTERNS,
    MOST_STEPS,
    MOST_VALUES,
)
from gptoss_export.structure.structures import Structures

NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (NODE, "#"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#"),
        ({"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2}, "#"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/n"}},
                "$defs": {"n": NODE | {"properties": {"next": {"$ref": "#/$defs/n"}}}},
            },
            "#/properties/a",
        ),
        ({"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}}, "#"),
        ({"anyOf": [NODE, {"type": "array", "items": {"$ref": "#"}, "minItems": 3}]}, "#"),
    ],
)
def test_a_schema_without_a_finite_document_is_named(
    small_structures: Structures, schema: dict[str, Any], place: str
) -> None:
    for strict in (True, False):
        error = refusal(small_structures, schema, strict)
        assert "no answer can obey it" in error and f"{place}: requires itself without end" in error


@pytest.mark.parametrize(
    "schema",
    [
        NODE | {"required": []},
        NODE | {"properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}},
        NODE | {"type": ["object", "null"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 1},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/z"}},
         "$defs": {"z": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}, "x": {"type": "null"}}},
    ],
)  # fmt: skip
def test_a_schema_that_refers_to_itself_can_have_an_end(small_structures: Structures, schema: dict[str, Any]) -> None:
    assert refusal(small_structures, schema) == ""


def optional(count: int, name: str = "k") -> dict[str, Any]:
    return {"type": "object", "properties": {f"{name}{at}": {"type": "null"} for at in range(count)}}


def several(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return {"anyOf": [each | {"additionalProperties": False} for each in schemas]}


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (optional, "#"),
        (lambda count: {"type": "array", "items": optional(count)}, "#/items"),
        (lambda count: several([optional(count // 2, "a"), optional(count - count // 2, "b")]), "#"),
        (lambda count: {"anyOf": [{"type": "array", "prefixItems": [{"const": at}]} for at in range(count)]}, "#"),
        (lambda count: {"$defs": {"a": optional(count)}, "oneOf": [{"$ref": "#/$defs/a"}]}, "#/$defs/a"),
        (lambda count: {"anyOf": [{"$ref": "#/$defs/a"}] * count, "$defs": {"a": optional(1)}}, "#"),
    ],
)
def test_what_can_come_next_is_limited(
    small: HarmonyTokenizer, small_structures: Structures, make: Callable[[int], dict[str, Any]], place: str
) -> None:
    """The library gives an answer up where more can come next than it follows side by side."""
    named = f"{place}: found {MOST_ALTERNATIVES + 1} optional properties and alternatives that can come next"
    assert named in refusal(small_structures, make(MOST_ALTERNATIVES + 1))
    allowed = small_structures.of_answer(JsonSchema(make(MOST_ALTERNATIVES)))
    RandomAnswer(small, 3).of(allowed)


def test_required_properties_do_not_add_up(small: HarmonyTokenizer, small_structures: Structures) -> None:
    many = optional(3 * MOST_ALTERNATIVES)
    required = [f"k{at}" for at in range(0, 3 * MOST_ALTERNATIVES, MOST_ALTERNATIVES)]
    RandomAnswer(small, 1).of(small_structures.of_answer(JsonSchema(many | {"required": required})))


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
from gptoss_export.structure.schema_size import (
    MOST_ALTERNATIVES,
    MOST_CHARACTERS,
    MOST_DEPTH,
    MOST_PATTERNS,
    MOST_STEPS,
    MOST_VALUES,
)
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
