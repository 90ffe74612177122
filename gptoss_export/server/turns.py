"""Messages of the model, and calls with their results, as the chat format has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..harmony.messages import FUNCTIONS, Message, is_call


def recipient_of(name: str) -> str:
    """Who a call of a function is for. A model that calls what is no function of the developer's, such as
    "browser.search", names it whole."""
    return name if "." in name else f"{FUNCTIONS}.{name}"


def function_of(recipient: str | None) -> str | None:
    """The function that a message of the model calls; None for a message to the user."""
    return recipient.removeprefix(f"{FUNCTIONS}.") if recipient is not None and is_call(recipient) else None


def call(name: str, arguments: str) -> Message:
    """A call of a function."""
    return Message("assistant", arguments, "commentary", recipient_of(name), "<|constrain|>json")


def result(name: str, output: str) -> Message:
    """The result of a call."""
    return Message("tool", output, "commentary", "assistant", name=recipient_of(name))


def reasoning(text: str) -> Message:
    """Reasoning of the model."""
    return Message("assistant", text, "analysis")


def said(text: str, before_a_call: bool) -> Message:
    """Text of the model for the user."""
    return Message("assistant", text, "commentary" if before_a_call else "final")


def joined(parts: Sequence[str]) -> str:
    """Instructions that a request gives in several places."""
    return "\n\n".join(part for part in parts if part)


def format_section(name: str, description: str | None, schema: Mapping[str, Any]) -> str:
    """How the developer message tells the model of a JSON schema that its answer follows."""
    comment = f"// {' '.join(description.split())}\n" if description else ""
    return (
        f"# Response Formats\n\n## {name}\n\n{comment}{json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"
    )
