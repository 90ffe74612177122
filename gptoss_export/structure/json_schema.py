"""JSON schemas as grammars: what is too large to be compiled, and what cannot be enforced, by its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, raise_all
from ..values import shown
from .formats import CallableTool, JsonSchema
from .grammars import NO_FORCING, Grammar, GrammarError, Grammars

# A weak model can write white space without end, where it is allowed.
WHITE_SPACE = r"[ ]|\n[ ]{0,32}"

# Sizes of a schema. Compiling one recurses along its nesting and its references, and a process ends where its stack
# does: at twice MOST_STEPS or later, with the usual stack of 8 MB.
MOST_CHARACTERS = 256 * 1024
MOST_VALUES = 10_000  # objects, arrays, texts, numbers
MOST_DEPTH = 100  # JSON values inside of each other
MOST_STEPS = 2000  # the depth, times the number of places that `$ref` names
MOST_PATTERNS = 100  # `patternProperties`, which are compared with each other

# Of the drafts up to 2020-12; the library refuses them.
UNSUPPORTED = frozenset(
    {
        *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems"),
        *("propertyNames", "unevaluatedProperties"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
    }
)
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
EXACT = 2**53  # the library computes with float64

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def document(grammars: Grammars, format_: JsonSchema, end: int) -> Grammar:
    """The grammar of documents that obey a schema, and the token `end` after them.

    Raises UsageError naming what cannot be enforced, and what is too large.
    """
    schema = _as_json(format_)
    _check_size(format_.field, schema)
    options = {
        "whitespace_pattern": WHITE_SPACE,
        "json_allow_general_unicode_escapes": True,
        "lenient": not format_.strict,
    }
    raise_all(UsageError, f"{format_.field}: cannot be enforced", _rounded(schema))
    text = json.dumps(
        {
            "grammars": [
                {"lark_grammar": f"{NO_FORCING}start: @document <[{end}]>"},
                {"name": "document", "json_schema": schema | {"x-guidance": options}},
            ]
        }
    )
    try:
        return grammars.compiled(text)
    except GrammarError as error:
        if format_.strict:
            raise_all(
                UsageError,
                f"{format_.field}: parts cannot be enforced; remove them, or set strict to false to ignore them",
                _unsupported(schema, str(error)),
            )
        raise UsageError(f"{format_.field}: cannot be compiled: {error}") from None


def arguments(tool: CallableTool) -> JsonSchema:
    """The schema of a strict tool's arguments. Raises UsageError for one of anything but an object."""
    field = f"parameters of the tool {tool.name}"
    if tool.parameters is None:
        return JsonSchema({"type": "object", "additionalProperties": False}, field=field)
    kind = tool.parameters.get("type", "object")
    if kind != "object":
        raise UsageError(f'{field}: found the type {shown(kind)}, expected "object"')
    return JsonSchema({"type": "object", **tool.parameters}, field=field)


def _as_json(format_: JsonSchema) -> dict[str, Any]:
    """The schema as JSON holds it."""
    try:
        text = json.dumps(format_.schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{format_.field}: found what is no JSON ({error}), expected a JSON schema") from None
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{format_.field}: found {len(text)} characters, expected at most {MOST_CHARACTERS}")
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise UsageError(f"{format_.field}: found {shown(format_.schema)}, expected an object, which a JSON schema is")
    return schema


@dataclass
class _Size:
    values: int = 0
    depth: int = 0
    patterns: int = 0


def _check_size(field: str, schema: dict[str, Any]) -> None:
    size, references = _Size(), set()
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        size.values += 1
        size.depth = max(size.depth, depth)
        if isinstance(value, dict):
            if isinstance(patterns := value.get("patternProperties"), dict):
                size.patterns += len(patterns)
            if isinstance(reference := value.get("$ref"), str):
                references.add(reference)
        waiting += [(child, depth + 1) for child in _children(value)]
    steps = size.depth * len(references)
    problems = [
        f"found {found} {what}, expected at most {most}"
        for found, most, what in (
            (size.values, MOST_VALUES, "values"),
            (size.depth, MOST_DEPTH, "values inside of each other"),
            (size.patterns, MOST_PATTERNS, "patternProperties"),
            (steps, MOST_STEPS, f"as the depth of {size.depth} times {len(references)} places that $ref names"),
        )
        if found > most
    ]
    raise_all(UsageError, f"{field}: too large", problems)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _unsupported(schema: dict[str, Any], message: str) -> Iterator[str]:
    """What the library does not enforce, by its place. `message`: why it refused the schema."""
    for place, part in _schemas(schema):
        for name in sorted(UNSUPPORTED & part.keys()):
            yield f"{place}/{name}"
        if isinstance(format_ := part.get("format"), str) and format_ not in FORMATS:
            yield f"{place}/format: found {shown(format_)}, expected one of {', '.join(FORMATS)}"
        if "oneOf" in part and message.startswith("oneOf"):
            yield f"{place}/oneOf: alternatives that one document can obey together; anyOf can be enforced"


def _rounded(schema: dict[str, Any]) -> Iterator[str]:
    for place, part in _schemas(schema):
        for name in ("const", "enum"):
            for value in _numbers(part.get(name)):
                if abs(value) > EXACT:
                    yield f"{place}/{name}: found {shown(value)}, expected integers up to 2**53, as larger are rounded"


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    for child in _children(value):
        yield from _numbers(child)


def _schemas(schema: dict[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A schema and those inside of it, each with its place as `$ref` writes it."""
    waiting: list[tuple[str, Any]] = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield place, part
        inside: list[tuple[str, Any]] = []
        for name in _MAPS:
            if isinstance(found := part.get(name), dict):
                inside += [(f"{place}/{name}/{_escaped(key)}", value) for key, value in found.items()]
        for name in _LISTS:
            if isinstance(found := part.get(name), list):
                inside += [(f"{place}/{name}/{index}", value) for index, value in enumerate(found)]
        inside += [(f"{place}/{name}", part[name]) for name in _SINGLE if name in part]
        waiting += reversed(inside)


def _escaped(key: str) -> str:
    """A name in a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
