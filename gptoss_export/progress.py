"""The steps of long work: what is being done, and how long each took. Knows nothing about terminals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the step's name when it starts and with its seconds when it ends.
Listener = Callable[[str, float | None], None]


class Steps:
    """Times named steps, and tells a listener as they start and end."""

    def __init__(self, listener: Listener = lambda name, seconds: None) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    def at(self, name: str) -> None:
        """Say how far the step is; not timed."""
        self._listener(name, None)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._listener(name, None)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._listener(name, self.seconds[name])
