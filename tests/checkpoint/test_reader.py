"""Reading a checkpoint: layer by layer, and every tensor is checked."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from checkpoint_values import assert_equal, read_parameters
from safetensors.torch import load_file, save_file

from gptoss_export.checkpoint import LAYOUTS, open_checkpoint
from gptoss_export.errors import CheckpointError
from gptoss_export.model.parameters import layer_of


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_the_layers(checkpoints: dict[str, Path], layout: str) -> None:
    checkpoint = open_checkpoint(checkpoints[layout])
    groups = dict(checkpoint.converted_groups())
    layers = {f"layer-{layer:03}": layer for layer in range(checkpoint.config.num_hidden_layers)}
    assert groups.keys() == {*layers, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for group, tensors in groups.items():
        assert all(layer_of(name) == layers.get(group) for name in tensors)
    assert_equal(
        {name: value for group in groups.values() for name, value in group.items()}, read_parameters(checkpoint)
    )
    assert checkpoint.keeps_experts == (layout in ("hf", "original"))


def test_a_group_that_is_deleted_is_freed(checkpoints: dict[str, Path]) -> None:
    """So a build holds one layer in memory."""
    groups = open_checkpoint(checkpoints["hf-bf16"]).converted_groups()
    _, tensors = next(group for group in groups if group[0] == "layer-001")
    freed = weakref.ref(tensors["model.layers.1.mlp.experts.down_proj_blocks"])
    assert freed() is not None
    del tensors
    assert freed() is None
    assert next(groups)[0] == "layer-002"


def test_all_problems_are_named_at_once(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "broken")
    (folder / "model.safetensors.index.json").unlink()
    shard = sorted(folder.glob("*.safetensors"))[3]
    tensors = load_file(shard)
    names = {name.split(".", 3)[3]: name for name in tensors}
    tensors["model.layers.0.self_attn.extra"] = torch.zeros(2)
    del tensors[names["self_attn.sinks"]]
    tensors[names["self_attn.o_proj.weight"]] = torch.zeros(3, 5)
    tensors[names["mlp.experts.down_proj_blocks"]] = tensors[names["mlp.experts.down_proj_blocks"]].to(torch.int16)
    save_file(tensors, shard)
    save_file({names["mlp.router.bias"]: tensors[names["mlp.router.bias"]].clone()}, folder / "more.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    for part in (
        f"{names['self_attn.sinks']}: missing",
        "model.layers.0.self_attn.extra: unknown",
        "shape [3, 5], expected [96, 256]",
        "dtype I16, expected U8",
        f"{names['mlp.router.bias']}: in 2 files",
    ):
        assert part in str(caught.value)


def test_broken_shards(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "broken")
    first, second, third, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(b"no header")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = third.name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    for part in (f"{first.name}: named by", f"{second.name}: cannot be read", "ghost: "):
        assert part in str(caught.value)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"index\.json: holds a list, expected an object"):
        open_checkpoint(folder)
    for weight_map in ({}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))
        with pytest.raises(CheckpointError, match=r"not a safetensors index .weight_map: found .*expected an object"):
            open_checkpoint(folder)


def test_a_file_that_the_index_does_not_name_is_left_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """An adapter, a shard of another training run, a broken file."""
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "more")
    expected = {name: path.name for name, path in open_checkpoint(folder).files.items()}
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    shutil.copy(sorted(folder.glob("model-*.safetensors"))[1], folder / "old.safetensors")
    (folder / "zero.safetensors").write_bytes(b"")
    assert {name: path.name for name, path in open_checkpoint(folder).files.items()} == expected


def test_without_an_index_the_file_of_all_weights_is_the_shard(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "one")
    (folder / "model.safetensors.index.json").unlink()
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    save_file(tensors, folder / "model.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    assert {path.name for path in open_checkpoint(folder).files.values()} == {"model.safetensors"}


def test_a_tensor_in_two_shards_names_both(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "twice")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    tensors, name = load_file(first), next(iter(load_file(second)))
    save_file(tensors | {name: load_file(second)[name]}, first)
    with pytest.raises(CheckpointError, match=rf"{name}: in 2 files .{first.name}, {second.name}., expected in one"):
        open_checkpoint(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "..", "", "a/b.safetensors"])
def test_an_index_names_files_of_its_folder(checkpoints: dict[str, Path], tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "elsewhere")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="expected an object that gives the name of a file in the folder"):
        open_checkpoint(folder)


def test_other_folders(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "none")
    shutil.copy(checkpoints["hf"] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        open_checkpoint(tmp_path)
    save_file({"foreign": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no known layout .such as foreign"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_integers_are_no_weights(checkpoints: dict[str, Path], tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = _with_tensor(checkpoints["hf"], tmp_path, name, dtype)
    with pytest.raises(CheckpointError, match=rf"{name} .*dtype [UI]\d+, expected BF16 or F32 or F16"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_packed_weights_are_bytes(checkpoints: dict[str, Path], tmp_path: Path, part: str, dtype: torch.dtype) -> None:
    name = f"model.layers.3.mlp.experts.gate_up_proj_{part}"
    with pytest.raises(CheckpointError, match=rf"{name} .*dtype \w+, expected U8"):
        open_checkpoint(_with_tensor(checkpoints["hf"], tmp_path, name, dtype))


def _with_tensor(checkpoint: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> Path:
    """A copy of a checkpoint with one tensor in another dtype."""
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"][name]
    tensors = load_file(shard)
    save_file(tensors | {name: tensors[name].to(dtype)}, shard)
    return folder
