"""Conversations to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .builtin_tools import BUILTIN_TOOLS
from .messages import CHANNELS, CONSTRAIN, Conversation, Message
from .tool_declarations import functions_section, tools_section
from .vocabulary import HarmonyTokenizer

_ALL = "all"  # a recipient that is not written


def prompt_tokens(conversation: Conversation, tokenizer: HarmonyTokenizer) -> list[int]:
    """A prompt that the model continues with its answer. It ends with `<|start|>assistant`.

    Reasoning before the last answer is left out, as the model was trained: messages of the channel analysis before the
    last one of the channel final. (openai-harmony leaves out those before the first one, and none where the last
    message of the model is not final, such as a call.)

    Raises UsageError for text that the tokenizer cannot take and for schemas that cannot be written.
    """
    messages = [Message("system", system_text(conversation))]
    if developer := developer_text(conversation):
        messages.append(Message("developer", developer))
    tokens: list[int] = []
    for message in (*messages, *_without_old_reasoning(conversation.messages)):
        tokens.extend(message_tokens(message, tokenizer))
    return [*tokens, tokenizer.start, *tokenizer.encode("assistant")]


def message_tokens(message: Message, tokenizer: HarmonyTokenizer) -> list[int]:
    """A whole message: header, body, and the token that ends it."""
    tokens = [tokenizer.start]
    # Each part of a header is made into tokens by itself, as the model has seen it.
    for part in _header(message, tokenizer):
        tokens.extend(tokenizer.encode(part) if isinstance(part, str) else [part])
    calls = message.role == "assistant" and message.recipient is not None
    end = tokenizer.call if calls else tokenizer.end
    return [*tokens, tokenizer.message, *tokenizer.encode(message.content), end]


def system_text(conversation: Conversation) -> str:
    """The text of the system message: who the model is, how long it reasons, builtin tools, channels."""
    top = [conversation.identity, f"Knowledge cutoff: {conversation.knowledge_cutoff}"]
    if conversation.date is not None:
        top.append(f"Current date: {conversation.date}")
    sections = ["\n".join(top), f"Reasoning: {conversation.effort}"]
    if conversation.builtin_tools:
        sections.append(tools_section({name: BUILTIN_TOOLS[name] for name in conversation.builtin_tools}.values()))
    channels = f"# Valid channels: {', '.join(CHANNELS)}. Channel must be included for every message."
    if conversation.tools:
        channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return "\n\n".join([*sections, channels])


def developer_text(conversation: Conversation) -> str:
    """The text of the developer message: instructions and functions. Empty where there are none."""
    sections = []
    if conversation.instructions:
        sections += ["# Instructions", conversation.instructions]
    if conversation.tools:
        sections.append(functions_section(conversation.tools))
    return "\n\n".join(sections)


def _header(message: Message, tokenizer: HarmonyTokenizer) -> Iterator[str | int]:
    """The parts between `<|start|>` and `<|message|>`: texts and control tokens."""
    if message.role == "tool":
        yield message.name or ""
    else:
        yield message.role
        if message.name is not None:
            yield f":{message.name}"
    if message.recipient not in (None, _ALL):
        yield f" to={message.recipient}"
    if message.channel is not None:
        yield tokenizer.channel
        yield message.channel
    kind = message.content_type
    if kind is not None and kind.startswith(CONSTRAIN):
        yield from (" ", tokenizer.constrain, kind.removeprefix(CONSTRAIN))
    elif kind is not None:
        yield f" {kind}"


def _without_old_reasoning(messages: Sequence[Message]) -> Iterable[Message]:
    finals = [index for index, message in enumerate(messages) if message.channel == "final"]
    last = finals[-1] if finals else -1
    return (message for index, message in enumerate(messages) if index > last or message.channel != "analysis")
