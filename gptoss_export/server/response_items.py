"""Makes a conversation of the items of a response's request."""

from __future__ import annotations

from collections.abc import Sequence

from ..harmony.messages import Message
from .errors import invalid
from .requests_responses import (
    FunctionCallItem,
    FunctionOutputItem,
    InputMessage,
    InputText,
    OutputText,
    ReasoningItem,
)
from .turns import call, joined, reasoning, result, said

AnyItem = InputMessage | FunctionCallItem | FunctionOutputItem | ReasoningItem


def read_items(given: str | Sequence[AnyItem]) -> tuple[str, tuple[Message, ...]]:
    """The instructions, which are the system and developer messages at the beginning, and the messages after them.

    The result of a call comes right after it, as the model has seen it in training. Raises ApiError for calls without a
    result, and for results without a call.
    """
    if isinstance(given, str):
        return "", (Message("user", given),)
    outputs = _outputs(given)
    turns: list[Message] = []
    instructions: list[str] = []
    calls: set[str] = set()
    for at, item in enumerate(given):
        if isinstance(item, InputMessage):
            text = _text(item.content)
            if item.role not in ("system", "developer"):
                turns.append(_message(item, text, given[at + 1] if at + 1 < len(given) else None))
            elif turns:
                turns.append(Message("developer", f"# Instructions\n\n{text}"))
            else:
                instructions.append(text)
        elif isinstance(item, ReasoningItem):
            if text := "".join(part.text for part in item.content or ()):
                turns.append(reasoning(text))
        elif isinstance(item, FunctionCallItem):
            output = outputs.get(item.call_id)
            if output is None:
                raise invalid(
                    f"input[{at}].call_id",
                    f"found no function_call_output of {item.call_id}; send the result of each call",
                )
            if item.call_id in calls:
                raise invalid(f"input[{at}].call_id", f"found {item.call_id} twice, expected one call of each id")
            calls.add(item.call_id)
            turns += [call(item.name, item.arguments), result(item.name, _text(output.output))]
        elif item.call_id not in calls:
            raise invalid(
                f"input[{at}].call_id", f"found {item.call_id}, expected that of a function_call before this item"
            )
    return joined(instructions), tuple(turns)


def _outputs(items: Sequence[AnyItem]) -> dict[str, FunctionOutputItem]:
    """The results by the ids of their calls."""
    found: dict[str, FunctionOutputItem] = {}
    for at, item in enumerate(items):
        if isinstance(item, FunctionOutputItem):
            if item.call_id in found:
                raise invalid(f"input[{at}].call_id", f"found {item.call_id} twice, expected one result of each call")
            found[item.call_id] = item
    return found


def _message(item: InputMessage, text: str, following: AnyItem | None) -> Message:
    if item.role == "user":
        return Message("user", text)
    # Without a phase, a message right before a call is what the model said about it.
    before_a_call = isinstance(following, FunctionCallItem)
    return said(text, item.phase == "commentary" if item.phase is not None else before_a_call)


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
