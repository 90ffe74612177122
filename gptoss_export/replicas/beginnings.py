"""The beginning of a request's prompt, in hashes of several lengths: prompts that begin alike share the first ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

_STEP = 256  # characters between the first lengths: about the 64 tokens of a page of the KV cache
_STEPS = 16  # after so many lengths the step doubles
_MOST = 2**19  # characters: about as many as a context of 131,072 tokens holds
_MOST_BODY = 4 * 10**6  # bytes; no context holds a longer one, so that the server refuses it in any case


def beginnings(body: bytes) -> tuple[tuple[int, bytes], ...]:
    """Lengths in characters and hashes of the beginning of a prompt, shortest first.

    body  a request of OpenAI's API, in JSON. There is nothing to remember of one that is none, or is nested too deeply:
          the server refuses it
    """
    if len(body) > _MOST_BODY:
        return ()
    try:
        request = json.loads(body)
        return tuple(_hashes(_text_of(request))) if isinstance(request, dict) else ()
    except (ValueError, RecursionError):
        return ()


def _text_of(request: dict[str, Any]) -> str:
    """The text of a prompt, as far as it counts."""
    pieces, length = [], 0
    for piece in _pieces(request):
        pieces.append(piece)
        length += len(piece)
        if length >= _MOST:
            break
    return "".join(pieces)[:_MOST]


def _pieces(request: dict[str, Any]) -> Iterator[str]:
    """What a prompt is made of, in the order in which the chat format has it."""
    reasoning = request.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else request.get("reasoning_effort")
    declared = ("instructions", "response_format", "text", "tools")
    yield _text([effort or "medium", *(request.get(name) for name in declared)])
    said = request.get("messages", request.get("input", request.get("prompt")))
    if isinstance(said, str) and "input" in request:
        said = [{"role": "user", "content": said}]  # which the next turn has in its place
    items = said if isinstance(said, list) and all(isinstance(item, dict) for item in said) else [said]
    for piece in items:
        yield _text(piece)


def _text(value: Any) -> str:
    """The same text for the same value, in whatever order a client writes its fields."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _hashes(text: str) -> Iterator[tuple[int, bytes]]:
    state, at = hashlib.blake2b(digest_size=16), 0
    for length in _lengths():
        if length > len(text):
            return
        state.update(text[at:length].encode("utf-8", "surrogatepass"))
        at = length
        yield length, state.copy().digest()


def _lengths() -> Iterator[int]:
    """Lengths whose distance grows with them, so that a prompt has few."""
    length = 0
    for doubled in count():
        for _ in range(_STEPS):
            length += _STEP << doubled
            yield length
