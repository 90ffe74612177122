"""Tests that use a loaded artifact run twice: with torch's tensors, and with arrays of libtorch alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner_without_torch import load_without_torch

from gptoss_export import Runner, load


@pytest.fixture(scope="session", params=["with torch", "without torch"])
def loaded(artifact: Path, request: pytest.FixtureRequest) -> Runner:
    return load(artifact) if request.param == "with torch" else load_without_torch(artifact)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "torch_tensors: reads or changes torch's tensors inside of a runner")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    kind = parameters.params.get("loaded") if parameters else None
    return kind == "without torch" and item.get_closest_marker("torch_tensors") is not None
