"""Schemas and documents that obey them, as strategies of hypothesis. Python's json and jsonschema judge both."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

# U+007F is in no document: the grammar has it as an escape alone, and json.dumps writes it as it is.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")
NAMES = st.text(CHARACTERS, min_size=1, max_size=6)


@dataclass(frozen=True)
class Case:
    """A schema, and documents that obey it."""

    schema: Any
    documents: st.SearchStrategy[Any]


# Not "date" and "date-time": any year has 29 February in the grammar.
FORMATS = FormatChecker(["email", "ipv4", "ipv6", "uuid"])


def obeys(schema: Any, document: Any) -> bool:
    return Draft202012Validator(schema, format_checker=FORMATS).is_valid(document)


def loads(text: str) -> Any:
    """A document. A name that comes twice, and what JSON has not, are errors."""

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    return json.loads(text, parse_constant=no_constant)


def forms(document: Any) -> list[str]:
    """A document as it is often written."""
    return [
        json.dumps(document, ensure_ascii=False),
        json.dumps(document, ensure_ascii=False, separators=(",", ":")),
        json.dumps(document, ensure_ascii=False, indent=2),
    ]


def leaves() -> st.SearchStrategy[Case]:
    return st.one_of(_strings(), _integers(), _numbers(), _fixed(), _formats(), _patterns(), _simple())


def cases(open_objects: bool = True) -> st.SearchStrategy[Case]:
    """Any schema. `open_objects`: with names that no keyword lists, too, which can repeat."""
    return st.recursive(
        leaves(), lambda inner: st.one_of(_arrays(inner), _objects(inner, open_objects), _any_of(inner)), max_leaves=6
    )


def objects(open_objects: bool = True) -> st.SearchStrategy[Case]:
    return _objects(cases(open_objects), open_objects)


def _simple() -> st.SearchStrategy[Case]:
    return st.sampled_from(
        [
            Case({"type": "boolean"}, st.booleans()),
            Case({"type": "null"}, st.none()),
            Case({"type": "string"}, st.text(CHARACTERS, max_size=12)),
            Case({"type": ["string", "null"]}, st.none() | st.text(CHARACTERS, max_size=5)),
            Case({"type": "integer"}, st.integers()),
            Case({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
        ]
    )


@st.composite
def _strings(draw: st.DrawFn) -> Case:
    low = draw(st.integers(0, 3))
    high = draw(st.integers(low, low + 6))
    return Case(
        {"type": "string", "minLength": low, "maxLength": high}, st.text(CHARACTERS, min_size=low, max_size=high)
    )


@st.composite
def _integers(draw: st.DrawFn) -> Case:
    low, high = sorted(draw(st.tuples(*[st.integers(-10_000, 10_000)] * 2)))
    schema = {"type": "integer", "minimum": low, "maximum": high}
    if draw(st.booleans()):
        schema = {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    return Case(schema, st.integers(low, high))


@st.composite
def _numbers(draw: st.DrawFn) -> Case:
    low, high = sorted(draw(st.tuples(*[st.integers(-1000, 1000)] * 2)))
    values = st.integers(low * 8, high * 8).map(lambda eighths: eighths / 8 if eighths % 8 else eighths // 8)
    return Case({"type": "number", "minimum": low, "maximum": high}, values)


@st.composite
def _fixed(draw: st.DrawFn) -> Case:
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(CHARACTERS, max_size=6), st.just(1.5)
    )
    values = draw(st.lists(scalars, min_size=1, max_size=4))
    if len(values) == 1:
        return Case({"const": values[0]}, st.just(values[0]))
    return Case({"enum": values}, st.sampled_from(values))


def _formats() -> st.SearchStrategy[Case]:
    days = st.dates(datetime.date(1000, 1, 1))
    values = {
        "date": days.map(str),
        "time": st.times().map(lambda time: time.replace(microsecond=0).isoformat() + "Z"),
        "date-time": st.datetimes(datetime.datetime(1000, 1, 1)).map(lambda at: at.isoformat() + "+01:00"),
        "uuid": st.uuids().map(str),
        "ipv4": st.ip_addresses(v=4).map(str),
        "email": st.from_regex(r"[a-z]{1,8}@[a-z]{1,8}\.org", fullmatch=True),
    }
    return st.sampled_from([Case({"type": "string", "format": name}, each) for name, each in values.items()])


def _patterns() -> st.SearchStrategy[Case]:
    patterns = [r"^[A-Z]{2}-[0-9]{4}$", r"^(yes|no|perhaps)$", r"^\w+@\d{1,3}$", r"^[^a-z\s]{1,5}$", r"^b{2,3}.?"]
    ascii_text = st.characters(min_codepoint=32, max_codepoint=126)
    return st.sampled_from(
        [
            Case({"type": "string", "pattern": each}, st.from_regex(each, fullmatch=True, alphabet=ascii_text))
            for each in patterns
        ]
    )


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    item = draw(inner)
    low = draw(st.integers(0, 2))
    high = draw(st.integers(low, low + 3))
    schema: dict[str, Any] = {"type": "array", "items": item.schema, "minItems": low, "maxItems": high}
    documents = st.lists(item.documents, min_size=low, max_size=high)
    if draw(st.booleans()):
        first = draw(inner)
        schema |= {"prefixItems": [first.schema], "minItems": low + 1, "maxItems": high + 1}
        documents = st.tuples(first.documents, documents).map(lambda parts: [parts[0], *parts[1]])
    return Case(schema, documents)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Case], open_objects: bool) -> Case:
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: case.schema for name, case in properties.items()},
        "required": required,
    }
    others: st.SearchStrategy[dict[str, Any]] = st.just({})
    if not open_objects or draw(st.booleans()):
        schema["additionalProperties"] = False
    elif draw(st.booleans()):
        other = draw(inner)
        schema["additionalProperties"] = other.schema
        names = NAMES.filter(lambda name: name not in properties)
        others = st.dictionaries(names, other.documents, max_size=2)
    listed = st.fixed_dictionaries(
        {}, optional={name: case.documents for name, case in properties.items() if name not in required}
    )
    needed = st.fixed_dictionaries({name: properties[name].documents for name in required})

    def in_order(parts: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
        found = parts[0] | parts[1]
        return {name: found[name] for name in properties if name in found} | parts[2]

    return Case(schema, st.tuples(needed, listed, others).map(in_order))


@st.composite
def _any_of(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    options = draw(st.lists(inner, min_size=1, max_size=3))
    return Case({"anyOf": [each.schema for each in options]}, st.one_of([each.documents for each in options]))


def finite(document: Any) -> bool:
    """Whether all numbers of a document are finite: JSON can say 1e999."""
    if isinstance(document, float):
        return math.isfinite(document)
    if isinstance(document, dict):
        return all(map(finite, document.values()))
    return all(map(finite, document)) if isinstance(document, list) else True
