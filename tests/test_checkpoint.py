"""All layouts hold the same model, transformers reads the same weights, and every tensor is checked."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from gptoss_export.artifact.atomic_folder import replace_folder
from gptoss_export.checkpoint import LAYOUTS, Checkpoint, open_checkpoint
from gptoss_export.checkpoint.layouts import layout_of
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, with_layers, write_synthetic
from gptoss_export.cli import make_checkpoint
from gptoss_export.errors import CheckpointError, UsageError
from gptoss_export.model import mxfp4
from gptoss_export.model.decoder import GptOss
from gptoss_export.model.parameters import INV_FREQ, layer_of

CPU = torch.device("cpu")

# A layout that stores each expert as a matrix of its own, under names that no other layout has.
EXPERT_A_TENSOR = """
from dataclasses import dataclass

import torch

from gptoss_export.checkpoint.layouts.hugging_face import dense_recipes, load_from_parameters, plain_config_json
from gptoss_export.checkpoint.layouts.layout import Layout, Recipe, StoredTensor, expert_matrices
from gptoss_export.model import mxfp4


@dataclass(frozen=True)
class StackExperts:
    def parameters(self, name):
        return f"{name}_blocks", f"{name}_scales"

    def convert(self, stored):
        pairs = [mxfp4.quantize(matrix[:]) for matrix in stored]
        return torch.stack([blocks for blocks, _ in pairs]), torch.stack([scales for _, scales in pairs])

    def invert(self, parameters):
        return tuple(mxfp4.dequantize(*parameters).to(torch.bfloat16).unbind())


def recipes(config):
    found = {}
    for name, recipe in dense_recipes(config).items():
        parts = tuple(StoredTensor(f"net.{part.name}", part.shape, part.dtypes) for part in recipe.parts)
        found[name] = Recipe(parts)
    for layer in range(config.num_hidden_layers):
        for name, rows, columns in expert_matrices(config):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            experts = range(config.num_local_experts)
            parts = tuple(StoredTensor(f"net.{layer}.{name}.{expert}", (rows, columns)) for expert in experts)
            found[stem] = Recipe(parts, StackExperts())
    return found


LAYOUT = Layout(
    name="net-bf16",
    names="net",
    experts="bf16",
    matches=lambda names: all(name.startswith("net.") for name in names),
    recipes=recipes,
    config_json=plain_config_json,
    load_transformers=load_from_parameters,
)
"""


def parameters(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.parameter(name) for name in checkpoint.parameters()}


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter, MXFP4 ones dequantized."""
    found = parameters(open_checkpoint(folder))
    for name in [name for name in found if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        found[stem] = mxfp4.dequantize(found.pop(name), found.pop(f"{stem}_scales"))
    return found


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_layouts_hold_the_same_model(checkpoints: dict[str, Path]) -> None:
    first, *others = (unpacked(folder) for folder in checkpoints.values())
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_are_the_models(checkpoints: dict[str, Path], layout: str) -> None:
    checkpoint = open_checkpoint(checkpoints[layout])
    with torch.device("meta"):
        model = GptOss(checkpoint.config, torch.bfloat16)
    wanted = {name: (value.shape, value.dtype) for name, value in model.named_parameters()}
    del wanted[INV_FREQ]  # computed from config.json
    read = parameters(checkpoint)
    assert {name: (value.shape, value.dtype) for name, value in read.items()} == wanted


def test_same_weights_as_transformers(checkpoints: dict[str, Path], transformer: GptOssForCausalLM) -> None:
    theirs, ours = dict(transformer.named_parameters()), unpacked(checkpoints["original"])
    for name, value in ours.items():
        if "qkv_proj" in name:
            value_theirs = torch.cat([theirs[name.replace("qkv", letter)] for letter in "qkv"])
        else:
            value_theirs = theirs[name].mT if name.endswith(("gate_up_proj", "down_proj")) else theirs[name]
        assert torch.equal(value.float(), value_theirs.float()), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_loads_transformers(
    checkpoints: dict[str, Path], transformer: GptOssForCausalLM, layout: str
) -> None:
    checkpoint = open_checkpoint(checkpoints[layout])
    assert checkpoint.layout.name == layout
    model = checkpoint.layout.load_transformers(checkpoint, torch.float32, CPU)
    assert_equal(dict(model.named_parameters()), dict(transformer.named_parameters()))
    assert_equal(dict(model.named_buffers()), dict(transformer.named_buffers()))
    assert model.config._attn_implementation == "eager"


def test_transformers_gets_the_rounded_experts(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A build rounds plain experts to MXFP4, so transformers must compute with the rounded ones too."""
    folder = shutil.copytree(checkpoints["hf-bf16"], tmp_path / "between")
    name = "model.layers.1.mlp.experts.down_proj"
    shard = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(shard)
    exact = tensors[name].clone()
    tensors[name] = exact * 1.1  # values that MXFP4 does not hold
    save_file(tensors, shard, metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    model = checkpoint.layout.load_transformers(checkpoint, torch.float32, CPU)
    found = model.model.layers[1].mlp.experts.down_proj.data
    expected = mxfp4.dequantize(checkpoint.parameter(f"{name}_blocks"), checkpoint.parameter(f"{name}_scales")).mT
    assert torch.equal(found, expected)
    assert not torch.equal(found, tensors[name].float())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_the_layers(checkpoints: dict[str, Path], layout: str) -> None:
    checkpoint = open_checkpoint(checkpoints[layout])
    groups = dict(checkpoint.converted_groups())
    layers = {f"layer-{layer:03}": layer for layer in range(checkpoint.config.num_hidden_layers)}
    assert groups.keys() == {*layers, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for group, tensors in groups.items():
        assert all(layer_of(name) == layers.get(group) for name in tensors)
    assert_equal({name: value for group in groups.values() for name, value in group.items()}, parameters(checkpoint))
    assert checkpoint.converts == (layout == "hf-bf16")


def test_a_group_that_is_deleted_is_freed(checkpoints: dict[str, Path]) -> None:
    """So a build holds one layer in memory."""
    groups = open_checkpoint(checkpoints["hf-bf16"]).converted_groups()
    _, tensors = next(group for group in groups if group[0] == "layer-001")
    freed = weakref.ref(tensors["model.layers.1.mlp.experts.down_proj_blocks"])
    assert freed() is not None
    del tensors
    assert freed() is None
    assert next(groups)[0] == "layer-002"


def test_a_layout_is_one_file_and_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "expert_a_tensor.py").write_text(EXPERT_A_TENSOR)
    spec = importlib.util.spec_from_file_location("expert_a_tensor", tmp_path / "expert_a_tensor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "expert_a_tensor", module)
    spec.loader.exec_module(module)
    with pytest.raises(UsageError, match="--layout net: expected original or hf"):
        layout_for("net", "bf16")
    monkeypatch.setitem(LAYOUTS, module.LAYOUT.name, module.LAYOUT)

    folder = tmp_path / "made"
    original = open_checkpoint(checkpoints["original"])
    write_synthetic(folder, PRESETS["tiny"], layout_for("net", "bf16"), 7, CPU)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout is module.LAYOUT and checkpoint.converts
    assert checkpoint.stored("net.0.down_proj.3").shape == (96, 64)
    assert_equal(unpacked(folder), unpacked(checkpoints["original"]))
    theirs = [opened.layout.load_transformers(opened, torch.float32, CPU) for opened in (checkpoint, original)]
    assert_equal(*(dict(model.named_parameters()) for model in theirs))

    shard = next(path for path in folder.glob("*.safetensors") if "net.2.gate_up_proj.5" in load_file(path))
    tensors = load_file(shard)
    del tensors["net.2.gate_up_proj.5"]
    save_file(tensors, shard)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"layout net-bf16\)\n  - net.2.gate_up_proj.5: missing"):
        open_checkpoint(folder)


def test_registry() -> None:
    assert all(name == layout.name for name, layout in LAYOUTS.items())
    pairs = {(layout.names, layout.experts): layout for layout in LAYOUTS.values()}
    assert len(pairs) == len(LAYOUTS)
    assert all(layout_for(*pair) is layout for pair, layout in pairs.items())
    for layout in LAYOUTS.values():
        recipes = layout.recipes(PRESETS["tiny"])
        assert layout_of([part.name for recipe in recipes.values() for part in recipe.parts]) is layout
    assert layout_of(["foreign"]) is None


def test_options_offer_what_is_registered() -> None:
    choices = {
        option.name: set(option.type.choices)
        for option in make_checkpoint.command.params
        if isinstance(option.type, click.Choice)
    }
    assert choices["preset"] == set(PRESETS)
    assert choices["layout"] == {layout.names for layout in LAYOUTS.values()}
    assert choices["experts"] == {layout.experts for layout in LAYOUTS.values()}


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
    with pytest.raises(CheckpointError, match="not a safetensors index"):
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


def test_folders_get_the_usual_permissions_and_leave_the_umask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    shared = tmp_path / "shared"
    shared.touch()
    shared.chmod(0o640)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to all threads"))
    with replace_folder(tmp_path / "made", UsageError) as folder:
        (folder / "file").touch(mode=0o600)
        os.link(shared, folder / "shared")
    for name in (".", "file"):
        assert (tmp_path / "made" / name).stat().st_mode == (tmp_path / "plain" / name).stat().st_mode
    assert shared.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["file", "shared"]
    with pytest.raises(KeyError), replace_folder(tmp_path / "failed", UsageError):
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "plain", "shared"]
