"""The artifact of a training step that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artifacts import SEED, TWO_LAYERS, made_once
from gptoss_export import BuildOptions, build
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.training_options import TrainOptions


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint`, of two layers, and `artifact`, its training step of 96 tokens and rank 4."""

    def make(root: Path) -> None:
        write_synthetic(root / "checkpoint", TWO_LAYERS, LAYOUTS["hf"], SEED, torch.device("cpu"), tokenizer=True)
        options = BuildOptions("aoti", "cpu", train=TrainOptions(tokens=96, lora_rank=4), jobs=1)
        build(root / "checkpoint", root / "artifact", options)

    return made_once(tmp_path_factory, "training", make)
