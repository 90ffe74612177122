"""Fixtures: what is changed, and the server that runs the cases, one for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_settings import tuned_file
from fuzz_surface import Bases
from fuzz_worker import Worker


@pytest.fixture(scope="session")
def bases(artifact: Path, uncompiled: Path, checkpoints: dict[str, Path]) -> Bases:
    return Bases(artifact, uncompiled, checkpoints, tuned_file(Path(__file__).parents[2]))


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()
