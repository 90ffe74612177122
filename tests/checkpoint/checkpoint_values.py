"""What the tests of checkpoints share: all parameters of one, and comparing two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from gptoss_export.checkpoint import Checkpoint, open_checkpoint
from gptoss_export.model import mxfp4


def read_parameters(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.parameter(name) for name in checkpoint.parameters()}


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter, MXFP4 ones dequantized."""
    found = read_parameters(open_checkpoint(folder))
    for name in [name for name in found if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        found[stem] = mxfp4.dequantize(found.pop(name), found.pop(f"{stem}_scales"))
    return found


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
