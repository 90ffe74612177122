"""JSON schemas as grammars, and what of a schema cannot be enforced, by its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import UsageError, raise_all
from ..values import shown
from .endless_schemas import endless
from .formats import CallableTool, JsonSchema
from .grammars import NO_FORCING, Grammar, GrammarError, Grammars
from .inexact_schemas import refused_parts, rounded_numbers, without
from .schema_places import schemas_inside
from .schema_size import MOST_CHARACTERS, check_size

# A weak model can write white space without end, where it is allowed.
WHITE_SPACE = r"[ ]|\n[ ]{0,32}"

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


def document(grammars: Grammars, format_: JsonSchema, end: int) -> Grammar:
    """The grammar of documents that obey a schema, and the token `end` after them.

    Raises UsageError naming what cannot be enforced, and what is too large.
    """
    schema = _as_json(format_)
    check_size(format_.field, schema)
    rounded = [*rounded_numbers(schema)]
    if format_.strict:
        raise_all(UsageError, f"{format_.field}: cannot be enforced", [part.problem for part in rounded])
    schema = without(schema, rounded)
    raise_all(UsageError, f"{format_.field}: no answer can obey it", endless(schema))
    try:
        return grammars.compiled(_text(schema, format_.strict, end))
    except GrammarError as error:
        problem = error
    refused = [*refused_parts(schema, lambda part: _refusal(grammars, part, end))]
    if format_.strict:
        raise_all(
            UsageError,
            f"{format_.field}: parts cannot be enforced; remove them, or set strict to false to ignore them",
            [*_unsupported(schema, str(problem)), *(part.problem for part in refused)],
        )
    elif refused:
        try:
            return grammars.compiled(_text(without(schema, refused), False, end))
        except GrammarError as error:
            problem = error
    raise UsageError(f"{format_.field}: cannot be compiled: {problem}")


def _text(schema: Mapping[str, Any], strict: bool, end: int) -> str:
    """The grammar in the library's notation."""
    options = {
        "whitespace_pattern": WHITE_SPACE,
        "json_allow_general_unicode_escapes": True,
        "lenient": not strict,
    }
    return json.dumps(
        {
            "grammars": [
                {"lark_grammar": f"{NO_FORCING}start: @document <[{end}]>"},
                {"name": "document", "json_schema": {**schema, "x-guidance": options}},
            ]
        }
    )


def _refusal(grammars: Grammars, schema: Mapping[str, Any], end: int) -> str | None:
    try:
        Grammar(grammars, _text(schema, True, end))
    except GrammarError as error:
        return str(error)
    return None


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


def _unsupported(schema: Mapping[str, Any], message: str) -> Iterator[str]:
    """What the library does not enforce, by its place. `message`: why it refused the schema."""
    for place, part in schemas_inside(schema):
        for name in sorted(UNSUPPORTED & part.keys()):
            yield f"{place}/{name}"
        if isinstance(format_ := part.get("format"), str) and format_ not in FORMATS:
            yield f"{place}/format: found {shown(format_)}, expected one of {', '.join(FORMATS)}"
        if "oneOf" in part and message.startswith("oneOf"):
            yield f"{place}/oneOf: alternatives that one document can obey together; anyOf can be enforced"
