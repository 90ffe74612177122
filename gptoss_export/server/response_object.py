"""The response object of OpenAI's /v1/responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .requests_responses import ResponseRequest
from .served_model import ServedModel
from .sinks import Usage


@dataclass(frozen=True)
class ResponseFacts:
    """What all states of a response say."""

    model: ServedModel
    asked: ResponseRequest
    id: str
    created: int

    def to_json(
        self,
        status: Literal["in_progress", "completed", "incomplete", "failed"],
        output: list[dict[str, Any]],
        usage: Usage | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The response in one state."""
        asked = self.asked
        reasoning = asked.reasoning
        text = asked.text.format if asked.text is not None else None
        choice = asked.tool_choice
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (reasoning and reasoning.effort) or "medium", "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"} if text is None else text.model_dump(by_alias=True)},
            "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump(by_alias=True) for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": asked.user,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens of a request. The KV cache keeps every prompt anyway, so that no token counts as written to it."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.reused, "cache_write_tokens": 0},
        "output_tokens": usage.generated,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.generated,
    }
