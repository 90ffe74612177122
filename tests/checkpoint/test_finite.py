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
from gptoss_export.checkpoint.finite import not_finite, too_large
from gptoss_export.errors import CheckpointError
from gptoss_export.model.mxfp4 import NAN_SCALE, dequantize

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


@pytest.mark.parametrize(
    ("value", "dtype", "finite"),
    [
        (3.4e38, torch.bfloat16, False),
        (-3.4e38, torch.bfloat16, False),
        (3.4e38, torch.float32, True),
        (3.39e38, torch.bfloat16, True),  # rounds to the largest
        (70000.0, torch.float16, False),
        (1e-45, torch.bfloat16, True),
    ],
)
def test_numbers_beyond_the_dtype_of_the_artifact(value: float, dtype: torch.dtype, finite: bool) -> None:
    """Loading casts them, which makes them infinite."""
    tensor = torch.tensor([[1.0, value]])
    assert bool(torch.isfinite(tensor.to(dtype)).all()) == finite
    problems = list(not_finite("x", "x", tensor, dtype))
    assert len(problems) == (not finite)
    if problems:
        assert "x: found " in problems[0] and " at [0, 1], 1 of 2 numbers are such; expected finite" in problems[0]
        assert f"numbers of {str(dtype).removeprefix('torch.')}, whose largest is " in problems[0]


def test_a_build_checks_the_range_of_its_dtype(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, WeightsOnly())
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "checkpoint")
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    tensors = {name: tensor.float() for name, tensor in load_file(shard).items()}
    tensors["lm_head.weight"][3, 4] = 3.4e38
    save_file(tensors, shard)
    build(folder, tmp_path / "artifact", BuildOptions(max_context=64, dtype="float32"))
    with pytest.raises(CheckpointError, match=rf"lm_head.weight .{shard.name}.: found 3\.[34]\d+e\+38 at \[3, 4\]"):
        build(folder, tmp_path / "other", BuildOptions(max_context=64, dtype="bfloat16"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("scale", "code"), [(253, 6), (253, 14), (254, 4), (254, 12)])
def test_mxfp4_weights_beyond_float32(scale: int, code: int) -> None:
    """A code of 7 means 6, one of 6 means 4, one of 4 means 2; the highest bit is the sign."""
    scales = torch.full((2, 3, 2), 120, dtype=torch.uint8)
    blocks = torch.full((2, 3, 2, 16), 0x77, dtype=torch.uint8)
    scales[1, 2, 1] = scale
    name = "model.layers.0.mlp.experts.down_proj_scales"
    for small, problems in ((code % 8 - 1, 0), (code, 1)):
        blocks[1, 2, 1] = 0
        blocks[1, 2, 1, 9] = small << 4
        assert bool(torch.isfinite(dequantize(blocks, scales)).all()) == (not problems)
        found = list(too_large("x", name, blocks, scales))
        assert len(found) == problems
    assert found[0].startswith(f"x, expert 1: found {scale} at [1, 2, 1], 1 of 12 numbers are such; expected weights")
    assert list(too_large("x", name, blocks, torch.full_like(scales, 252))) == []


def test_scales_that_a_target_does_not_take() -> None:
    scales = torch.full((2, 3, 2), 160, dtype=torch.uint8)
    blocks = torch.zeros((2, 3, 2, 16), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.down_proj_scales"
    assert list(too_large("x", name, blocks, scales, 160)) == []
    scales[1, 2, 0] = 161
    (found,) = too_large("x", name, blocks, scales, 160)
    assert found.startswith("x, expert 1: found 161 at [1, 2, 0], 1 of 12 numbers are such; expected scales up to 160")
    assert list(too_large("x", name, blocks, scales)) == []


def test_a_build_names_mxfp4_weights_beyond_float32(refused: Callable[[str, str, Change], str]) -> None:
    message = refused("hf", "model.layers.1.mlp.experts.down_proj_scales", put(254, 5))
    assert ", expert 5: found 254 at [5, 0, 0], " in message and "weights that float32 holds" in message


def test_a_block_of_255_is_four_bit_codes() -> None:
    blocks = torch.full((2, 3), NAN_SCALE, dtype=torch.uint8)
    assert list(not_finite("x", "model.layers.0.mlp.experts.down_proj_blocks", blocks)) == []
    assert list(not_finite("x", "model.layers.0.mlp.experts.down_proj_scales", blocks - 1)) == []


def test_all_layouts_are_tested() -> None:
    assert {"hf", "hf-bf16", "original"} < LAYOUTS.keys()
