"""Puts another value in the place of an attribute, until a stack is left."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

_MISSING = object()


def replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """`owner.name` is `value` until `stack` unwinds; then it is what it was, or not there if it was not."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    if before is _MISSING:
        stack.callback(delattr, owner, name)
    else:
        stack.callback(setattr, owner, name, before)
