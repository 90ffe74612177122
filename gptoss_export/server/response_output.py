"""The output items of a response, and the events that tell how they grow."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from .deltas import Delta

Event = dict[str, Any]


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass
class _Open:
    """The item that grows."""

    message: int
    at: int
    item: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseOutput:
    """The items so far. `push` changes them and returns events without their sequence numbers."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: _Open | None = None

    def push(self, delta: Delta, logprobs: list[dict[str, Any]]) -> list[Event]:
        """What a part of the answer adds. A message without text is no item, unless it is the answer or a call."""
        events: list[Event] = []
        if self._open is None or self._open.message != delta.message:
            if not (delta.text or delta.kind == "call" or (delta.kind == "content" and not delta.preamble)):
                return events
            self._open, begin = self._begin(delta)
            events += begin
        events += self._grow(self._open, delta, logprobs)
        if delta.ends:
            events += self._end(self._open, delta)
            self._open = None
        return events

    def _begin(self, delta: Delta) -> tuple[_Open, list[Event]]:
        item: dict[str, Any] = {"status": "in_progress"}
        if delta.kind == "reasoning":
            item |= {"id": _id("rs"), "type": "reasoning", "summary": [], "content": []}
        elif delta.kind == "content":
            phase = "commentary" if delta.preamble else "final_answer"
            item |= {"id": _id("msg"), "type": "message", "role": "assistant", "content": [], "phase": phase}
        else:
            call = {"call_id": _id("call"), "name": delta.function, "arguments": ""}
            item |= {"id": _id("fc"), "type": "function_call", **call}
        opened = _Open(delta.message, len(self.items), item)
        self.items.append(item)
        events: list[Event] = [
            {"type": "response.output_item.added", "output_index": opened.at, "item": dict(item, **_empty(item))}
        ]
        if delta.kind != "call":
            part = _part(delta.kind, "", [])
            events.append({"type": "response.content_part.added", **_place(opened), "part": part})
        return opened, events

    def _grow(self, opened: _Open, delta: Delta, logprobs: list[dict[str, Any]]) -> list[Event]:
        if not delta.text and not logprobs:
            return []
        opened.texts.append(delta.text)
        opened.logprobs += logprobs
        if delta.kind == "call":
            kind = "response.function_call_arguments.delta"
            return [{"type": kind, "item_id": opened.item["id"], "output_index": opened.at, "delta": delta.text}]
        if delta.kind == "reasoning":
            return [{"type": "response.reasoning_text.delta", **_place(opened), "delta": delta.text}]
        grown = {"type": "response.output_text.delta", **_place(opened), "delta": delta.text, "logprobs": logprobs}
        return [grown]

    def _end(self, opened: _Open, delta: Delta) -> list[Event]:
        text, item = "".join(opened.texts), opened.item
        item["status"] = "incomplete" if delta.cut else "completed"
        events: list[Event]
        if delta.kind == "call":
            item["arguments"] = text
            kind = "response.function_call_arguments.done"
            place = {"item_id": item["id"], "output_index": opened.at}
            events = [{"type": kind, **place, "name": item["name"], "arguments": text}]
        else:
            part = _part(delta.kind, text, opened.logprobs)
            item["content"] = [part]
            done: Event = {"type": "response.reasoning_text.done", **_place(opened), "text": text}
            if delta.kind == "content":
                done |= {"type": "response.output_text.done", "logprobs": opened.logprobs}
            events = [done, {"type": "response.content_part.done", **_place(opened), "part": part}]
        return [*events, {"type": "response.output_item.done", "output_index": opened.at, "item": item}]


def _empty(item: dict[str, Any]) -> dict[str, Any]:
    """The fields of an item that change later, as they are at its beginning."""
    return {"content": []} if "content" in item else {}


def _place(opened: _Open) -> dict[str, Any]:
    return {"item_id": opened.item["id"], "output_index": opened.at, "content_index": 0}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
