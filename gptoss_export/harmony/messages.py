"""Conversations in terms of the format: messages with roles and channels, and the functions that a model may call."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UsageError, raise_all
from ..values import shown

Role = Literal["system", "developer", "user", "assistant", "tool"]
Effort = Literal["low", "medium", "high"]
BuiltinTool = Literal["browser", "python"]

FUNCTIONS = "functions"  # the namespace of a developer's functions
CHANNELS = ("analysis", "commentary", "final")
CONSTRAIN = "<|constrain|>"  # begins a content type that is written as this control token and a word
DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_CUTOFF = "2024-06"


@dataclass(frozen=True)
class Message:
    """A message.

    channel       of an assistant's message: "analysis" (reasoning), "commentary" (calls of functions) or "final"
    recipient     of a call: the function, such as "functions.get_weather"; of a call's result: "assistant"
    content_type  such as "<|constrain|>json", which is a control token and a word, or "code", which is plain text
    name          of a tool's message: the function that answers; of others: the name of the author, if there is one
    """

    role: Role
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None

    @property
    def is_call(self) -> bool:
        """Whether the model calls something with it."""
        return self.role == "assistant" and is_call(self.recipient)


def is_call(recipient: str | None) -> bool:
    """Whether a message of the model to this recipient is a call. Others are for the user."""
    return recipient not in (None, "user", "all", "assistant")


@dataclass(frozen=True)
class FunctionTool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments; None: it takes none."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Conversation:
    """What a prompt is made of.

    messages          in their order. A system or developer message among them is written as it is, in its place, after
                      the system message and the developer message that are made of the fields below
    effort            how long the model reasons
    instructions      of the developer; "": none
    tools             functions that the model may call
    date              of today, YYYY-MM-DD; None: the model is not told
    knowledge_cutoff  of the model's training
    identity          the first line of the system message
    builtin_tools     tools that gpt-oss was trained with

    Raises UsageError naming everything that the format cannot say.
    """

    messages: tuple[Message, ...]
    effort: Effort = "medium"
    instructions: str = ""
    tools: tuple[FunctionTool, ...] = ()
    date: str | None = None
    knowledge_cutoff: str = DEFAULT_CUTOFF
    identity: str = DEFAULT_IDENTITY
    builtin_tools: tuple[BuiltinTool, ...] = ()

    def __post_init__(self) -> None:
        raise_all(UsageError, "this conversation cannot be written", _problems(self))


def _problems(conversation: Conversation) -> Iterator[str]:
    if conversation.effort not in get_args(Effort):
        yield f"effort: found {shown(conversation.effort)}, expected low, medium or high"
    if conversation.date is not None and not _is_date(conversation.date):
        yield f"date: found {shown(conversation.date)}, expected YYYY-MM-DD"
    for builtin in conversation.builtin_tools:
        if builtin not in get_args(BuiltinTool):
            yield f"builtin_tools: found {shown(builtin)}, expected browser or python"
    names: set[str] = set()
    for index, tool in enumerate(conversation.tools):
        name = tool.name
        if not _is_word(name):
            yield f"tools[{index}].name: found {shown(name)}, expected a name without white space"
        elif name in names:
            yield f"tools[{index}].name: found {shown(name)} a second time, expected a name for each function"
        names.add(name)
    for index, message in enumerate(conversation.messages):
        if message.role not in get_args(Role):
            yield f"messages[{index}].role: found {shown(message.role)}, expected one of {', '.join(get_args(Role))}"
        if message.role == "tool" and message.name is None:
            yield f"messages[{index}].name: found none, expected the name of the function that answers"
        for field in ("channel", "recipient", "name"):
            word = getattr(message, field)
            if word is not None and not _is_word(word):
                yield f"messages[{index}].{field}: found {shown(word)}, expected a word without white space"


def _is_word(text: str) -> bool:
    return text.split() == [text]


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
