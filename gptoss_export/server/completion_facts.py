"""What all parts of a completion say, of chats and of plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .served_model import ServedModel
from .sinks import Usage


@dataclass(frozen=True)
class CompletionFacts:
    """What is known of a completion before its first token.

    asked_model   what the client calls the model that answers
    top_logprobs  None: no log probabilities
    """

    model: ServedModel
    asked_model: str
    id: str
    created: int
    top_logprobs: int | None = None

    def head(self, kind: str) -> dict[str, Any]:
        """The first fields of each object."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked_model}


def usage_json(usage: Usage) -> dict[str, Any]:
    """Tokens of a request."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
