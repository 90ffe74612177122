"""Schemas that no document can obey, since they require themselves: an answer would never end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .schema_places import schemas_inside

_MOST_ROUNDS = 100  # longer chains of references are not judged, and count as good


def endless(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names a schema that no finite document obeys, since it requires itself: an object, say, whose required property
    refers to the object."""
    places = dict(schemas_inside(schema))
    if not any("$ref" in part for part in places.values()):
        return
    finite: set[int] = set()
    waiting = dict(reversed(places.items()))  # what is inside first
    for _ in range(_MOST_ROUNDS):
        found = {place for place, part in waiting.items() if _is_finite(part, places, finite)}
        if not found:
            for place in list(reversed(waiting))[:1]:  # of those that need each other, the outermost one is enough
                yield f"{place}: requires itself without end; make a property optional, or allow null"
            return
        waiting = {place: part for place, part in waiting.items() if place not in found}


def _is_finite(part: Mapping[str, Any], places: Mapping[str, Mapping[str, Any]], finite: set[int]) -> bool:
    """Whether a schema has a finite document, as far as is known of those inside of it. Notes it in `finite`."""

    def good(value: Any) -> bool:
        return not isinstance(value, dict) or id(value) in finite

    def alternatives(name: str) -> list[Any]:
        found = part.get(name)
        return found if isinstance(found, list) else []

    reference = part.get("$ref")
    needs = [
        *([places[reference]] if isinstance(reference, str) and reference in places else []),
        *alternatives("allOf"),
        *_required(part),
    ]
    if part.get("type") in (None, "array") and isinstance(least := part.get("minItems"), int) and least > 0:
        first = alternatives("prefixItems")
        needs += first[:least]
        if least > len(first):
            needs.append(part.get("items"))
    if not all(map(good, needs)):
        return False
    if any(not any(map(good, found)) for name in ("anyOf", "oneOf") if (found := alternatives(name))):
        return False
    finite.add(id(part))
    return True


def _required(part: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas of the properties that an object must have."""
    names, properties = part.get("required"), part.get("properties")
    if part.get("type") != "object" or not isinstance(names, list):
        return
    known = properties if isinstance(properties, dict) else {}
    for name in names:
        if isinstance(name, str):
            yield known.get(name, part.get("additionalProperties"))
