"""JSON schemas as TypeScript types, in the way in which gpt-oss was trained to read them.

What openai-harmony does not render (`anyOf`, `allOf`, `$ref`, `const`) is `any` here too: another text is one that the
model has not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ..errors import UsageError
from ..values import shown

DEEPEST = 100  # levels of a schema inside of each other
_NOT_QUOTED = {"number": "number", "integer": "number", "boolean": "boolean"}


def typescript(schema: object, indent: str = "", depth: int = 0) -> str:
    """The type that a JSON schema describes. `indent` begins each of its further lines.

    Raises UsageError for a schema that is nested too deeply, or that holds a value that JSON does not have.
    """
    if depth > DEEPEST:
        raise UsageError(f"parameters: found a schema of more than {DEEPEST} levels; expected fewer")
    variants = _get(schema, "oneOf")
    if _is_array(variants):
        return "".join(_top_variant(variant, indent, depth) for variant in variants)
    kind = _get(schema, "type")
    if _is_array(kind):
        kinds = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(kinds) or "any"
    match kind:
        case "object":
            return _object(schema, indent, depth)
        case "array":
            items = _get(schema, "items", missing=_MISSING)
            return "Array<any>" if items is _MISSING else f"{typescript(items, indent, depth + 1)}[]"
        case "string":
            return " | ".join(f'"{value}"' for value in _enum(schema) if isinstance(value, str)) or "string"
        case str() if kind in _NOT_QUOTED:
            return _NOT_QUOTED[kind]
    return "any"


def _object(schema: object, indent: str, depth: int) -> str:
    description = _text(schema, "description")
    lines = [] if description is None else [f"{indent}// {description}\n"]
    lines.append("{\n")
    properties = _get(schema, "properties")
    required = _get(schema, "required")
    needed = {name for name in required if isinstance(name, str)} if _is_array(required) else set()
    if isinstance(properties, Mapping):
        for name, value in properties.items():
            lines.extend(_property(name, value, name in needed, indent, depth))
    return "".join([*lines, f"{indent}}}"])


def _property(name: str, schema: object, needed: bool, indent: str, depth: int) -> Iterator[str]:
    """A property of an object, with comments above it."""
    description, has_variants = _text(schema, "description"), _get(schema, "oneOf", missing=_MISSING) is not _MISSING
    if (title := _text(schema, "title")) is not None:
        yield f"{indent}// {title}\n{indent}//\n"
    if description is not None and not has_variants:
        yield f"{indent}// {description}\n"
    examples = _get(schema, "examples")
    if _is_array(examples) and examples:
        yield f"{indent}// Examples:\n"
        yield from (f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    label = f"{indent}{name}{'' if needed else '?'}:"
    variants = _get(schema, "oneOf")
    if _is_array(variants):
        yield from _variants(label, schema, variants, indent, depth)
        return
    yield f"{label} {_nullable(schema, f'{indent}    ', depth)},"
    if not has_variants and (default := _default(schema)) is not None:
        yield f" // {default}"
    yield "\n"


def _variants(label: str, schema: object, variants: Sequence[object], indent: str, depth: int) -> Iterator[str]:
    """A property that is one of several types, one a line. A description that they repeat stands once."""
    description = _text(schema, "description")
    above = description is not None and not (variants and _text(variants[0], "description") == description)
    if above:
        yield f"{indent}// {description}\n"
    if (default := _default(schema)) is not None:
        yield f"{indent}// {default}\n"
    yield f"{label}\n"
    for index, variant in enumerate(variants):
        comments = []
        own = _text(variant, "description")
        if own is not None and own != description and not (index == 0 and above):
            comments.append(own)
        if (default := _default(variant)) is not None:
            comments.append(default)
        yield f"{indent} | {_nullable(variant, f'{indent}   ', depth)}{_trailing(comments)}\n"
    yield f"{indent},\n"


def _top_variant(variant: object, indent: str, depth: int) -> str:
    """One of several types that are not those of a property."""
    comments = []
    if (description := _text(variant, "description")) is not None:
        comments.append(description)
    if (default := _default(variant, quoted_enum=True)) is not None:
        comments.append(default)
    return f"\n{indent} | {_nullable(variant, f'{indent}   ', depth)}{_trailing(comments)}"


def _trailing(comments: list[str]) -> str:
    return f" // {' '.join(comments)}" if comments else ""


def _nullable(schema: object, indent: str, depth: int) -> str:
    found = typescript(schema, indent, depth + 1)
    return f"{found} | null" if _get(schema, "nullable") is True and "null" not in found else found


def _default(schema: object, quoted_enum: bool = False) -> str | None:
    """The comment that says a default. The default of an enum is written without quotes, except with `quoted_enum`."""
    value = _get(schema, "default", missing=_MISSING)
    if value is _MISSING:
        return None
    if not isinstance(value, str):
        return f"default: {json_text(value)}"
    if _enum(schema):
        return f"default: {json_text(value) if quoted_enum else value}"
    return f'default: "{value}"'


def json_text(value: object, depth: int = 0) -> str:
    """JSON without white space, with numbers as openai-harmony writes them. Raises UsageError for what is no JSON."""
    if depth > DEEPEST:
        raise UsageError(f"parameters: found a value of more than {DEEPEST} levels; expected fewer")
    match value:
        case None | bool() | str():
            return json.dumps(value, ensure_ascii=False)
        case int():
            return str(value) if -(2**63) <= value < 2**64 else _float_text(_float(value))
        case float():
            return _float_text(value)
        case Mapping():
            members = (f"{json_text(str(key))}:{json_text(item, depth + 1)}" for key, item in value.items())
            return "{" + ",".join(members) + "}"
        case list() | tuple():
            return "[" + ",".join(json_text(item, depth + 1) for item in value) + "]"
    raise UsageError(f"parameters: found {shown(value)} in a schema, expected a value of JSON")


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _float_text(value: float) -> str:
    """The shortest digits that give the same number; with an exponent from 1e16 on and below 1e-5."""
    if not math.isfinite(value):
        raise UsageError(f"parameters: found the number {value} in a schema, expected one that JSON and float64 have")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)  # of a finite number
    minus, figures = "-" if sign else "", "".join(map(str, digits))
    if value == 0:
        return f"{minus}0.0"
    point = len(figures) + exponent  # where the decimal point is among the digits
    if 0 < point <= 16:
        whole, rest = figures[:point].ljust(point, "0"), figures[point:]
        return f"{minus}{whole}.{rest or '0'}"
    if -5 < point <= 0:
        return f"{minus}0.{'0' * -point}{figures}"
    mantissa = figures[0] + (f".{figures[1:]}" if len(figures) > 1 else "")
    return f"{minus}{mantissa}e{point - 1}"


_MISSING = object()


def _get(schema: object, key: str, missing: Any = None) -> Any:
    """A member of a schema, which may be no object."""
    return schema.get(key, missing) if isinstance(schema, Mapping) else missing


def _text(schema: object, key: str) -> str | None:
    value = _get(schema, key)
    return value if isinstance(value, str) else None


def _enum(schema: object) -> Sequence[object]:
    values = _get(schema, "enum")
    return values if _is_array(values) else ()


def _is_array(value: object) -> bool:
    return isinstance(value, list | tuple)
