"""Fields that several requests have, and how a wrong one is reported.

A field that no model here names is refused. Those that clients send and that change nothing are named, and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from ..model.sampling_state import MOST_BIASES
from ..runtime.sampling_params import SamplingParams
from ..values import shown
from .errors import invalid

TEXT_ALONE = "this model reads text alone, no images, audio or files"
_MOST_STOPS, _LONGEST_STOP = 4, 500
_LONGEST_ID = 10  # digits

Item = TypeVar("Item")
# A list has the errors of its first wrong item alone: those of a long list, in which all is wrong, would take hundreds
# of times its memory.
Listed = Annotated[list[Item], Field(fail_fast=True)]


class Fields(BaseModel):
    """Some fields of a request. A value has the JSON type that is expected, and no other is made to fit.

    advice  what to do about a field that cannot be used: beside the error, where its name begins so
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    advice: ClassVar[dict[str, str]] = {}


def chosen(error: str, message: str) -> Any:
    """What chooses one of the tagged types of a union: by the value's JSON type, or by its field `type` or `role`.

    Tags look like "<text>", so that they can be told from fields where an error is.
    """
    return Discriminator(_tag, custom_error_type=error, custom_error_message=message)


def _tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "<str>"
    if isinstance(value, list):
        return "<list>"
    if isinstance(value, dict):
        kind = value.get("type", value.get("role"))
    else:  # a model that was validated before
        kind = getattr(value, "type", getattr(value, "role", None))
    return f"<{kind}>" if isinstance(kind, str) else None


class TextPart(Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _text_part(value: Any) -> Any:
    if _tag(value) != "<text>":
        raise PydanticCustomError("part", f"expected a part of type text; {TEXT_ALONE}")
    return value


Part = Annotated[TextPart, BeforeValidator(_text_part)]
Content = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[Listed[Part], Tag("<list>")],
    chosen("content", "expected a text, or a list of parts of type text"),
]


def text_of(content: str | list[TextPart]) -> str:
    """The text of a message's content."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _finite(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(schema, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("finite", "expected finite numbers alone") from None
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_finite)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CalledName = Annotated[str, Field(pattern=r"^\S{1,256}$")]  # of a call: a model can call what there is not
AuthorName = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")]  # as OpenAI's API has it
FormatName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _stops(value: str | list[str] | None) -> str | list[str] | None:
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > _MOST_STOPS:
        raise PydanticCustomError(
            "stops", "found {count}, expected {most} at most", {"count": len(stops), "most": _MOST_STOPS}
        )
    for stop in stops:
        if not 0 < len(stop) <= _LONGEST_STOP:
            raise PydanticCustomError(
                "stop",
                "found a text of {count} characters, expected 1 to {most}",
                {"count": len(stop), "most": _LONGEST_STOP},
            )
    return value


Stops = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[Listed[str], Tag("<list>")],
    chosen("stop_kind", "expected a text, or a list of texts"),
]
CheckedStops = Annotated[Stops | None, AfterValidator(_stops)]


def listed_stops(given: str | list[str] | None) -> tuple[str, ...]:
    """The texts of `stop`."""
    return (given,) if isinstance(given, str) else tuple(given or ())


class StreamOptions(Fields):
    """`include_obfuscation` would hide the length of events from who watches the network. It is not done."""

    include_obfuscation: bool | None = None


class CompletionStreamOptions(StreamOptions):
    """Those of completions. A stream of /v1/responses always ends with the tokens of the request."""

    include_usage: bool | None = None


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    """Raise ApiError for options of a stream that was not asked for."""
    if options is not None and not stream:
        raise invalid("stream_options", "found without stream; set stream, or leave it out")


class IgnoredFields(Fields):
    """Fields that change nothing here: who asks, and how OpenAI's own service caches, bills and stores."""

    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None


class SamplingFields(Fields):
    """How tokens are chosen. OpenAI's API has no top_k, min_p and repetition_penalty."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


def _token_keys(biases: dict[str, float]) -> dict[str, float]:
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) <= _LONGEST_ID):
            raise PydanticCustomError(
                "token_key", 'found the key {key}, expected the id of a token, such as "42"', {"key": shown(key)}
            )
    return biases


Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES), AfterValidator(_token_keys)
]


class PenaltyFields(SamplingFields):
    """How tokens are chosen: the fields that chat completions and completions have, and responses do not."""

    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


def sampling_params(fields: SamplingFields, seed: int, top_logprobs: int) -> SamplingParams:
    """What a request's fields say. Without a temperature it is 1, as in OpenAI's API."""
    penalties = fields if isinstance(fields, PenaltyFields) else PenaltyFields()
    return SamplingParams(
        temperature=_or(fields.temperature, 1.0),
        top_p=_or(fields.top_p, 1.0),
        top_k=fields.top_k or 0,
        min_p=fields.min_p or 0.0,
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        presence_penalty=penalties.presence_penalty or 0.0,
        frequency_penalty=penalties.frequency_penalty or 0.0,
        logit_bias=cast(Mapping[int, float], penalties.logit_bias or {}),  # ids as text, as in JSON
        seed=seed,
        top_logprobs=top_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
