"""Checkpoints of one model whose floats are stored in each dtype of `model.dtypes.STORED`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptoss_export.checkpoint import LAYOUTS
from gptoss_export.checkpoint.layouts.layout import FLOATS
from gptoss_export.checkpoint.synthetic import write_synthetic
from gptoss_export.model.config import ModelConfig
from gptoss_export.model.dtypes import STORED, torch_dtype

MIXED = "mixed"  # neighbours differ, so that parts of one weight do too
DTYPES = [*FLOATS, MIXED]


def stored_as(folder: Path, config: ModelConfig, dtype: str) -> Path:
    """A checkpoint of numbers that every dtype holds exactly, so that it is the same model in each."""
    write_synthetic(folder, config, LAYOUTS["hf"], 7, torch.device("cpu"))
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for index, (name, value) in enumerate(sorted(tensors.items())):
            if value.is_floating_point():
                kind = FLOATS[index % len(FLOATS)] if dtype == MIXED else dtype
                tensors[name] = value.half().bfloat16().to(torch_dtype(STORED[kind]))
        save_file(tensors, shard)
    return folder
