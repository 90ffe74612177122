"""Makes a conversation of the messages of a chat completion's request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..harmony.messages import Message
from .errors import ApiError, invalid
from .fields import text_of
from .requests_chat import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from .turns import call, joined, reasoning, result, said

AnyMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage


def read_messages(messages: Sequence[AnyMessage]) -> tuple[str, tuple[Message, ...]]:
    """The instructions, which are the system and developer messages without a name at the beginning, and the messages
    after them.

    The result of a call comes right after it, as the model has seen it in training, also where a message has several
    calls. Raises ApiError for calls without a result, and for results without a call.
    """
    turns: list[Message] = []
    instructions: list[str] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        results = _results_after(messages, at)
        if isinstance(message, AssistantMessage):
            turns += _assistant(at, message, results)
            at += len(results)
        elif isinstance(message, ToolMessage):
            raise _no_call(at, message)
        elif isinstance(message, UserMessage):
            turns.append(Message("user", text_of(message.content), name=message.name))
        elif turns or message.name is not None:  # the instructions have no author's name
            turns.append(Message("developer", f"# Instructions\n\n{text_of(message.content)}", name=message.name))
        else:
            instructions.append(text_of(message.content))
        at += 1
    return joined(instructions), tuple(turns)


def _results_after(messages: Sequence[AnyMessage], at: int) -> list[ToolMessage]:
    """The messages of tools right after a message."""
    found: list[ToolMessage] = []
    for index in range(at + 1, len(messages)):
        if not isinstance(message := messages[index], ToolMessage):
            break
        found.append(message)
    return found


def _assistant(at: int, message: AssistantMessage, results: Sequence[ToolMessage]) -> list[Message]:
    """A message of the model with the results of its calls, which are the messages after it."""
    calls = message.tool_calls or []
    _check_ids(at, [call.id for call in calls], results)
    turns = []
    if reason := message.reasoning_content or message.reasoning:
        turns.append(reasoning(reason))
    # An answer of nothing is written as the model wrote it: an empty message, which ends its turn.
    if message.content is not None and ((text := text_of(message.content)) or not (turns or calls)):
        turns.append(said(text, before_a_call=bool(calls)))
    if not turns and not calls:
        raise invalid(f"messages[{at}]", "found neither content nor tool_calls, expected one of them")
    outputs = {each.tool_call_id: text_of(each.content) for each in results}
    for each in calls:
        turns += [call(each.function.name, each.function.arguments), result(each.function.name, outputs[each.id])]
    return [replace(turn, name=message.name) if turn.role == "assistant" else turn for turn in turns]


def _check_ids(at: int, calls: Sequence[str], results: Sequence[ToolMessage]) -> None:
    """Raise ApiError unless each call has one result, and each result one call."""
    known = set(calls)
    if len(known) < len(calls):
        raise invalid(f"messages[{at}].tool_calls", "found one id of two calls, expected another id for each")
    answered: set[str] = set()
    for index, message in enumerate(results, start=at + 1):
        if message.tool_call_id not in known:
            raise _no_call(index, message)
        if message.tool_call_id in answered:
            raise invalid(
                f"messages[{index}].tool_call_id",
                f"found a second result of {message.tool_call_id}, expected one for each call",
            )
        answered.add(message.tool_call_id)
    if missing := [call for call in calls if call not in answered]:
        raise invalid(
            f"messages[{at}].tool_calls",
            f"found no message of the role tool after it for {', '.join(missing)}; send the result of each call",
        )


def _no_call(at: int, message: ToolMessage) -> ApiError:
    return invalid(
        f"messages[{at}].tool_call_id",
        f"found {message.tool_call_id}, expected the id of a call in the assistant's message before it",
    )
