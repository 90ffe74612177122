"""The fields of a request for a completion (OpenAI's /v1/completions): text that is continued as it is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from .fields import CheckedStops, CompletionStreamOptions, IgnoredFields, Listed, PenaltyFields

_MOST_PROMPTS = 128


def _kind(value: object) -> str | None:
    """Which of the four forms a prompt has, by its first item."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    if isinstance(first, str):
        return "<texts>"
    return "<tokens>" if isinstance(first, int) else "<lists of tokens>" if isinstance(first, list) else None


TokenIds = Annotated[Listed[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[Listed[str], Tag("<texts>"), Field(max_length=_MOST_PROMPTS)]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[Listed[TokenIds], Tag("<lists of tokens>"), Field(max_length=_MOST_PROMPTS)],
    Discriminator(
        _kind,
        custom_error_type="prompt",
        custom_error_message="expected a text, a list of token ids, or a list of one of them",
    ),
]


class CompletionRequest(IgnoredFields, PenaltyFields):
    """A request. `best_of` can only be `n`: all that is generated is in the answer."""

    advice: ClassVar[dict[str, str]] = {
        "suffix": "this model writes what follows alone",
        "store": "nothing is stored here",
        "best_of": "leave it out",
    }

    model: str
    prompt: Prompt
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Literal[1] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    stop: CheckedStops = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: CompletionStreamOptions | None = None
