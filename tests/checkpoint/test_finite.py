"""Weights that are not finite are refused by a build, which names the tensor, its shard and its expert."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions, build
from gptoss_export.checkpoint import LAYOUTS
from gptoss_export.checkpoint.finite import not_finite
from gptoss_export.errors import CheckpointError
from gptoss_export.model.mxfp4 import NAN_SCALE

Change = Callable[[torch.Tensor], object]


@pytest.fixture
def refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, Change], str]:
    """Builds a checkpoint of which one tensor was changed; returns the error."""
    use(monkeypatch, WeightsOnly())

    def refuse(layout: str, name: str, change: Change) -> str:
        folder = shutil.copytree(checkpoints[layout], tmp_path / "checkpoint")
        shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
        tensors = load_file(shard)
        change(tensors[name])
        save_file(tensors, shard)
        with pytest.raises(CheckpointError, match="weights that are not finite") as caught:
            build(folder, tmp_path / "artifact", BuildOptions(max_context=64))
        assert list(tmp_path.iterdir()) == [folder]
        message = str(caught.value)
        assert f"{name} ({shard.name})" in message and len(message.splitlines()) == 2
        return message

    return refuse


def put(value: float, *index: int) -> Change:
    def change(tensor: torch.Tensor) -> None:
        tensor[index] = value

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.embed_tokens.weight", (500, 95)),
        ("model.norm.weight", (0,)),
        ("lm_head.weight", (511, 0)),
        ("model.layers.3.self_attn.k_proj.weight", (2, 3)),
        ("model.layers.0.self_attn.sinks", (7,)),
        ("model.layers.2.mlp.router.bias", (1,)),
    ],
)
@pytest.mark.parametrize("layout", ["hf", "hf-bf16"])
def test_dense_weights(
    refused: Callable[[str, str, Change], str], layout: str, name: str, index: tuple[int, ...], value: float
) -> None:
    message = refused(layout, name, put(value, *index))
    assert f"found {value} at {list(index)}, 1 of " in message and "expert" not in message


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_scales(refused: Callable[[str, str, Change], str], layout: str) -> None:
    stem = {"hf": "model.layers.1.mlp.experts.down_proj_scales", "original": "block.1.mlp.mlp2_weight.scales"}[layout]
    message = refused(layout, stem, put(NAN_SCALE, 5, 3, 1))
    assert ", expert 5: found 255 at [5, 3, 1], 1 of 1536 numbers" in message and "scales below 255" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plain_experts(refused: Callable[[str, str, Change], str], value: float) -> None:
    message = refused("hf-bf16", "model.layers.1.mlp.experts.down_proj", put(value, 6, 3, 1))
    assert ", expert 6: found 255 at [6, 1, 0]" in message


def test_biases_of_experts(refused: Callable[[str, str, Change], str]) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj_bias"
    assert ", experts 0, 1, 2, 3, 4 and 3 more: found nan at [0, 0]" in refused("hf", name, lambda t: t.fill_(math.nan))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    tensor = torch.tensor([[limits.max, limits.min], [limits.tiny, 0.0]], dtype=dtype)
    assert list(not_finite("x", "x", tensor)) == []
    tensor[1, 0] = -math.inf
    assert list(not_finite("x", "x", tensor)) == [
        "x: found -inf at [1, 0], 1 of 4 numbers are such; expected finite numbers"
    ]


def test_a_block_of_255_is_four_bit_codes() -> None:
    blocks = torch.full((2, 3), NAN_SCALE, dtype=torch.uint8)
    assert list(not_finite("x", "model.layers.0.mlp.experts.down_proj_blocks", blocks)) == []
    assert list(not_finite("x", "model.layers.0.mlp.experts.down_proj_scales", blocks - 1)) == []


def test_all_layouts_are_tested() -> None:
    assert LAYOUTS.keys() == {"hf", "hf-bf16", "original"}
