"""Synthetic checkpoints: what is written, and that a seed gives one model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, with_layers, write_synthetic
from gptoss_export.errors import UsageError

CPU = torch.device("cpu")


def test_write_synthetic(tmp_path: Path) -> None:
    config = with_layers(PRESETS["tiny"], 3)
    folders = [tmp_path / name for name in ("a", "b", "other")]
    shards: list[tuple[int, int]] = []
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_synthetic(
            folder,
            config,
            layout_for("hf", "mxfp4"),
            seed,
            CPU,
            progress=lambda done, total: shards.append((done, total)),
        )
    assert shards == [(done, 6) for done in range(1, 7)] * 3
    assert open_checkpoint(folders[0]).config.layer_types == (*PRESETS["tiny"].layer_types[:2], "sliding_attention")
    umask = os.umask(0)
    os.umask(umask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in folders[0].iterdir())
    first, same, other = (open_checkpoint(folder).parameter("lm_head.weight") for folder in folders)
    assert torch.equal(first, same) and not torch.equal(first, other)
    with pytest.raises(UsageError, match="exists already"):
        write_synthetic(folders[0], config, layout_for("hf", "mxfp4"), 1, CPU)
    with pytest.raises(UsageError, match="original layout is MXFP4 only"):
        layout_for("original", "bf16")
