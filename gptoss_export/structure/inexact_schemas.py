"""Keywords of a JSON schema whose values the library rounds or refuses, though it knows the keywords."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..values import shown
from .schema_places import children, schemas_inside

EXACT = 2**53  # the library computes with float64
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@dataclass(frozen=True)
class SchemaPart:
    """A keyword of a schema. `place` is the schema's, `pattern` one name of patternProperties."""

    place: str
    keyword: str
    problem: str
    pattern: str | None = None


def rounded_numbers(schema: Mapping[str, Any]) -> Iterator[SchemaPart]:
    """The numbers that float64 does not hold exactly, or that the library takes for the nearest int64."""
    for place, part in schemas_inside(schema):
        for name in ("const", "enum"):
            for value in _integers(part.get(name)):
                if abs(value) > EXACT:
                    yield _rounded(place, name, value, "integers")
        for name in _BOUNDS:
            bound = part.get(name)
            if isinstance(bound, (int, float)) and abs(bound) > EXACT:
                yield _rounded(place, name, bound, "a bound")


def _rounded(place: str, name: str, value: float, what: str) -> SchemaPart:
    problem = f"{place}/{name}: found {shown(value)}, expected {what} from -2**53 to 2**53, as others are rounded"
    return SchemaPart(place, name, problem)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    for child in children(value):
        yield from _integers(child)


def refused_parts(schema: Mapping[str, Any], refusal: Callable[[dict[str, Any]], str | None]) -> Iterator[SchemaPart]:
    """The patterns and the steps of numbers that the library cannot compile.

    refusal  compiles a schema, and says why that fails; None where it does not. Each part is compiled alone
    """
    for place, part in schemas_inside(schema):
        alone: list[tuple[str, Any, dict[str, Any], str | None]] = []
        if isinstance(pattern := part.get("pattern"), str):
            alone.append(("pattern", pattern, {"type": "string", "pattern": pattern}, None))
        if isinstance(step := part.get("multipleOf"), (int, float)):
            alone.append(("multipleOf", step, {"type": "number", "multipleOf": step}, None))
        if isinstance(patterns := part.get("patternProperties"), dict):
            for name in patterns:
                only = {"type": "object", "patternProperties": {name: {"type": "null"}}}
                alone.append(("patternProperties", name, only, name))
        for keyword, found, tried, name in alone:
            if (reason := refusal(tried)) is not None:
                yield SchemaPart(place, keyword, f"{place}/{keyword}: found {shown(found)}: {reason}", name)


def without(schema: dict[str, Any], parts: Iterable[SchemaPart]) -> dict[str, Any]:
    """A copy of a schema without some of its parts."""
    left = copy.deepcopy(schema)
    places = dict(schemas_inside(left))
    for part in parts:
        inside = places[part.place]
        if part.pattern is not None:
            inside[part.keyword].pop(part.pattern, None)
        else:
            inside.pop(part.keyword, None)
    return left
