"""Lends things that have one user at a time and cannot be given up, such as loaded code: the next user gets them
again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lending(Generic[Item]):
    """Things by key. Those that nobody uses are kept."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[Item]] = {}

    def lend(self, user: object, key: Hashable, make: Callable[[], Item]) -> Item:
        """One that nobody uses, or else a new one. It comes back when `user` ends. Raises what `make` raises."""
        idle = self._idle.setdefault(key, [])
        try:
            item = idle.pop()
        except IndexError:
            item = make()
        weakref.finalize(user, idle.append, item).atexit = False
        return item
