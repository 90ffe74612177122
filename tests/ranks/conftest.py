"""Artifacts that two and four ranks share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_artifacts import EVEN, ODD, other_ranks, wait_for_end

from artifacts import SEED, made_once
from gptoss_export import BuildOptions, Runner, build, load
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.model.config import ModelConfig

SIZES: dict[str, Any] = {"max_batch": 2, "widths": (2,), "max_context": 4400, "prefill_chunks": (64,)}


def _made(
    tmp_path_factory: pytest.TempPathFactory, name: str, config: ModelConfig, ranks: int, by_expert: bool
) -> Path:
    def make(root: Path) -> None:
        write_synthetic(root / "checkpoint", config, LAYOUTS["hf"], SEED, torch.device("cpu"), tokenizer=True)
        options = BuildOptions("aoti", "cpu", tensor_parallel=ranks, expert_parallel=by_expert, jobs=1, **SIZES)
        build(root / "checkpoint", root / "artifact", options)

    return made_once(tmp_path_factory, name, make)


@pytest.fixture(scope="session")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint`, of ODD, and its `artifact` for two ranks."""
    return _made(tmp_path_factory, "two-ranks", ODD, 2, by_expert=False)


@pytest.fixture(scope="session")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of EVEN, for four ranks with two experts each."""
    return _made(tmp_path_factory, "four-ranks", EVEN, 4, by_expert=True)


@pytest.fixture
def no_ranks_are_left() -> Iterator[None]:
    """Other tests' runners may be in the traceback of an error, or in a circle of references."""
    gc.collect()
    yield
    gc.collect()
    wait_for_end(other_ranks())


@pytest.fixture(scope="module")
def two(of_two: Path) -> Iterator[Runner]:
    """The artifact of two ranks, loaded."""
    gc.collect()
    yield load(of_two / "artifact")
