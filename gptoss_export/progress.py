"""The progress of long work: what is being done, how long each stage took. Knows nothing about terminals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Progress:
    """Times named stages. A subclass shows them; this one shows nothing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage. A stage that fails has no time."""
        self.started(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.finished(name, self.seconds[name])

    def started(self, name: str) -> None:
        """A stage begins."""

    def finished(self, name: str, seconds: float) -> None:
        """A stage has ended."""

    def update(self, text: str) -> None:
        """How far the present stage is."""

    def note(self, text: str) -> None:
        """Something that the user should know, such as a copy of many gigabytes."""

    def facts(self, title: str, values: Mapping[str, Any]) -> None:
        """Named values that the user should see before the work starts."""
