"""The schemas inside of a JSON schema, each by its place as `$ref` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def schemas_inside(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and those inside of it, each with its place, such as `#/properties/a`. A schema comes before those
    inside of it."""
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


def children(value: Any) -> Iterator[Any]:
    """The values directly inside of a value of JSON."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _escaped(key: str) -> str:
    """A name in a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
