"""What the tests of checkpoints share: all parameters of one, and comparing two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from gptoss_export.checkpoint import Checkpoint, open_checkpoint
from gptoss_export.model.expert_weights import unpack


def read_parameters(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.parameter(name) for name in checkpoint.parameters()}


def unpacked(folder: Path, experts: str | None = None) -> dict[str, torch.Tensor]:
    """Every parameter, those of experts as matrices."""
    checkpoint = open_checkpoint(folder, experts=experts)
    found, form = read_parameters(checkpoint), checkpoint.config.expert_format
    for name in [name for name in found if name.endswith(form.tensors[0].suffix) and ".mlp.experts." in name]:
        stem = name.removesuffix(form.tensors[0].suffix)
        weight, scales, table = (found.pop(part) if part else None for part in form.by_argument(stem).values())
        assert weight is not None
        found[stem] = unpack(weight, scales, table)
    return found


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
