"""Replaces attributes for a while, and refuses to replace one that does not exist."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ..errors import CompatibilityError

_MISSING = object()


def replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """`owner.name` is `value` until `stack` unwinds.

    Raises CompatibilityError where `owner` has no attribute of that name: another version of torch or Triton has
    renamed it, and setting it would have no effect."""
    if not hasattr(owner, name):
        label = getattr(owner, "__name__", type(owner).__name__)
        raise CompatibilityError(f"{label} has no attribute {name}; install a supported version of torch and Triton")
    before = vars(owner).get(name, _MISSING)  # without it the attribute is inherited
    setattr(owner, name, value)
    if before is _MISSING:
        stack.callback(delattr, owner, name)
    else:
        stack.callback(setattr, owner, name, before)


def add(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """`owner.name` is `value` until `stack` unwinds, whether or not it exists: for names that only some builds of
    torch have."""
    if hasattr(owner, name):
        replace(stack, owner, name, value)
        return
    setattr(owner, name, value)
    stack.callback(delattr, owner, name)
