"""The three layouts hold the same model, transformers reads the same weights, and every tensor is accounted for."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_export import mxfp4
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, with_layers, write_random
from gptoss_export.errors import CheckpointError, UsageError
from gptoss_export.compiler.export import build_model


def parameters(folder):
    """Every parameter, packed ones unpacked."""
    checkpoint = open_checkpoint(folder)
    found = {name: checkpoint.parameter(name) for name in checkpoint.parameters()}
    for name in [name for name in found if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        found[stem] = mxfp4.dequantize(found.pop(name), found.pop(f"{stem}_scales"))
    return found


def test_layouts_hold_the_same_model(checkpoints):
    first, *others = (parameters(folder) for folder in checkpoints.values())
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)


def test_parameters_are_the_models(checkpoints):
    checkpoint = open_checkpoint(checkpoints["hf"])
    model = build_model(checkpoint.config, torch.bfloat16)
    wanted = {name: (value.shape, value.dtype) for name, value in model.named_parameters()}
    del wanted["model.rotary_emb.inv_freq"]  # computed from config.json
    read = {name: checkpoint.parameter(name) for name in checkpoint.parameters()}
    assert {name: (value.shape, value.dtype) for name, value in read.items()} == wanted


def test_same_weights_as_transformers(checkpoints, transformer):
    theirs, ours = dict(transformer.named_parameters()), parameters(checkpoints["original"])
    for name, value in ours.items():
        if "qkv_proj" in name:
            value_theirs = torch.cat([theirs[name.replace("qkv", letter)] for letter in "qkv"])
        else:
            value_theirs = theirs[name].mT if name.endswith(("gate_up_proj", "down_proj")) else theirs[name]
        assert torch.equal(value.float(), value_theirs.float()), name


def test_all_problems_are_named_at_once(checkpoints, tmp_path):
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


def test_broken_shards(checkpoints, tmp_path):
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
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(folder)


def test_other_folders(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "none")
    shutil.copy(checkpoints["hf"] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no \\*.safetensors"):
        open_checkpoint(tmp_path)
    save_file({"foreign": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no known layout .such as foreign"):
        open_checkpoint(tmp_path)


def test_write_random(tmp_path):
    config = with_layers(PRESETS["tiny"], 3)
    folders = [tmp_path / name for name in ("a", "b", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_random(folder, config, layout_for("hf", "mxfp4"), seed, torch.device("cpu"))
    assert open_checkpoint(folders[0]).config.layer_types == (*PRESETS["tiny"].layer_types[:2], "sliding_attention")
    umask = os.umask(0)
    os.umask(umask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in folders[0].iterdir())
    first, same, other = (open_checkpoint(folder).parameter("lm_head.weight") for folder in folders)
    assert torch.equal(first, same) and not torch.equal(first, other)
    with pytest.raises(UsageError, match="exists already"):
        write_random(folders[0], config, layout_for("hf", "mxfp4"), 1, torch.device("cpu"))
    with pytest.raises(UsageError, match="original layout is MXFP4 only"):
        layout_for("original", "bf16")
