"""Reads the body of a request: from JSON to fields, or one error that names what is wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..errors import LISTED
from ..values import shown
from .errors import ApiError, invalid
from .fields import Fields

Asked = TypeVar("Asked", bound=Fields)

_CODES = {"extra_forbidden": "unsupported_parameter", "missing": "missing_required_parameter"}
_WORDS = {  # of pydantic -> ours
    "extra_forbidden": "this field is not supported; leave it out",
    "missing": "this field is needed",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "greater_than": "expected a number above {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected a number below {lt}",
    "less_than_equal": "expected {le} or less",
    "literal_error": "expected {expected}",
    "string_pattern_mismatch": "expected a name as {pattern}",
    "too_short": "expected {min_length} or more items",
    "too_long": "expected {max_length} items at most",
}
_WITHOUT_VALUE = {"extra_forbidden", "missing", "stop", "stops", "schema", "token_key"}
_MOST_ERRORS = 1000  # that are looked at: describing one takes about a kilobyte
_LONGEST_STEP = 80  # characters of a field's name in an error


def parse(model: type[Asked], body: bytes) -> Asked:
    """The request that a body holds. Raises ApiError for what is not UTF-8, no JSON, or not what `model` has."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(None, f"byte {error.start} of the body is not UTF-8 ({error.reason}); send UTF-8") from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if (count := error.error_count()) > _MOST_ERRORS:
            raise invalid(
                None,
                f"the body: found {count} errors, such as fields that are not known; send those of OpenAI's API",
            ) from None
        raise _told(model, error.errors(include_url=False, include_context=True)) from None


def _told(model: type[Fields], errors: list[ErrorDetails]) -> ApiError:
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return invalid(None, f"the body is not JSON ({reason}); send one JSON object", "invalid_json")
    reported: list[str] = []
    advised: set[str | None] = {None}
    for error in errors:
        place, words = path(error["loc"]), _words(error)
        advice = _advice(model, place)
        if advice not in advised:
            words += f"; {advice}"
        advised.add(advice)
        reported.append(f"{place or 'the body'}: {words}")
    if len(reported) > LISTED:
        reported = [*reported[:LISTED], f"and {len(reported) - LISTED} more"]
    message = "; ".join(reported)
    return ApiError(400, message, param=path(first["loc"]) or None, code=_CODES.get(first["type"]))


def path(loc: tuple[int | str, ...]) -> str:
    """Where in a request something is, such as "messages[0].content"."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith("<"):
            step = step if len(step) <= _LONGEST_STEP else f"{step[:_LONGEST_STEP]}..."
            text += f".{step}" if text else step
    return text


def _advice(model: type[Fields], place: str) -> str | None:
    """What to do about a field, if the model says something."""
    parts = {place, *(place[:at] for at, character in enumerate(place) if character in ".[")}
    return next((what for name, what in model.advice.items() if name in parts), None)


def _words(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    expected = _WORDS[kind].format(**context) if kind in _WORDS else error["msg"]
    found = "" if kind in _WITHOUT_VALUE else f"found {shown(_type_or_value(error['input']))}, "
    return f"{found}{expected}"


def _type_or_value(value: Any) -> Any:
    """Of an object that none of some kinds fits, what it says that it is; otherwise the value."""
    if isinstance(value, dict):
        return value.get("type", value.get("role", value))
    return value
