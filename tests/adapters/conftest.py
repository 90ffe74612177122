"""Adapters of a tiny model, and an artifact with adapter slots that was not compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_samples import KINDS, RANK, Oracle, make_adapter
from eager_artifact import load_eager, write_eager
from transformers import GptOssForCausalLM

from gptoss_export import Runner
from gptoss_export.artifact.programs import Sizes

SIZES = Sizes((1, 4), 512, (32, 64), adapter_slots=3, adapter_rank=RANK)


@pytest.fixture(scope="session")
def adapters(transformer: GptOssForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of adapters of all kinds. Nobody changes them."""
    return {kind: tmp_path_factory.mktemp("adapters") / kind for kind in KINDS}


@pytest.fixture(scope="session")
def oracles(transformer: GptOssForCausalLM, adapters: dict[str, Path]) -> dict[str | None, Oracle]:
    """What PEFT computes with each adapter, and transformers without one."""
    made: dict[str | None, Oracle] = {None: Oracle(transformer)}
    return made | {kind: make_adapter(transformer, folder, **KINDS[kind]) for kind, folder in adapters.items()}


@pytest.fixture(scope="session")
def eager_folder(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eager(tmp_path_factory.mktemp("eager") / "artifact", checkpoints["hf"], SIZES, "float32")


@pytest.fixture
def eager(eager_folder: Path, checkpoints: dict[str, Path], oracles: dict[str | None, Oracle]) -> Runner:
    """A runner with three adapter slots, all free; the adapters are made."""
    return load_eager(eager_folder, checkpoints["hf"])
