"""What is too large in a JSON schema to be compiled, or to be followed token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, raise_all
from .schema_places import children, schemas_inside

# Compiling a schema recurses along its nesting and its references, and a process ends where its stack does: at twice
# MOST_STEPS or later, with the usual stack of 8 MB.
MOST_CHARACTERS = 256 * 1024
MOST_VALUES = 10_000  # objects, arrays, texts, numbers
MOST_DEPTH = 100  # JSON values inside of each other
MOST_STEPS = 2000  # the depth, times the number of places that `$ref` names
MOST_PATTERNS = 100  # `patternProperties`, which are compared with each other
# The library follows all that can come next side by side, in 2,000 items at most: 4 for a property, 3 for an array.
MOST_ALTERNATIVES = 450
_MOST_ROUNDS = 100  # of looking references up; longer chains of them count as narrow


@dataclass
class _Size:
    values: int = 0
    depth: int = 0
    patterns: int = 0


def check_size(field: str, schema: dict[str, Any]) -> None:
    """Raise UsageError for a schema that is too large; `field` is its name in errors."""
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
        waiting += [(child, depth + 1) for child in children(value)]
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
    raise_all(UsageError, f"{field}: too large", problems or _too_wide(schema))


def _too_wide(schema: dict[str, Any]) -> Iterator[str]:
    places = dict(schemas_inside(schema))
    inner_first = [*reversed(places.items())]
    widths = dict.fromkeys(places, 0)
    for _ in range(_MOST_ROUNDS):  # a reference may lead to what comes later
        before = dict(widths)
        for place, part in inner_first:
            widths[place] = _width(place, part, widths)
            if widths[place] > MOST_ALTERNATIVES:
                yield (
                    f"{place}: found {widths[place]} optional properties and alternatives that can come next, expected "
                    f"at most {MOST_ALTERNATIVES}"
                )
                return  # those around it are as wide
        if widths == before:
            return


def _width(place: str, part: Mapping[str, Any], widths: Mapping[str, int]) -> int:
    """How many properties of objects, and arrays, can come next where a value of this schema begins."""

    def of(name: str) -> list[int]:
        found = part.get(name)
        return [widths.get(f"{place}/{name}/{at}", 0) for at in range(len(found))] if isinstance(found, list) else []

    reference = part.get("$ref")
    return max(
        _longest_choice(part),
        int(part.get("type") == "array" or "prefixItems" in part),
        sum(of("anyOf")),
        sum(of("oneOf")),
        max(of("allOf"), default=0),
        widths.get(reference, 0) if isinstance(reference, str) else 0,
    )


def _longest_choice(part: Mapping[str, Any]) -> int:
    """The most properties of an object that can follow one place: optional ones, and the required one after them."""
    properties, required = part.get("properties"), part.get("required")
    if not isinstance(properties, dict):
        return int(part.get("type") == "object")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    longest = run = 0
    for name in properties:
        run += 1
        longest = max(longest, run)
        if name in needed:
            run = 0
    return longest
