"""All layouts hold the same model, transformers reads the same weights, and a layout is one file and one line."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import click
import pytest
import torch
from checkpoint_values import assert_equal, read_parameters, unpacked
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from gptoss_export.checkpoint import LAYOUTS, open_checkpoint
from gptoss_export.checkpoint.layouts import layout_of
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, write_synthetic
from gptoss_export.cli import make_checkpoint
from gptoss_export.errors import CheckpointError, UsageError
from gptoss_export.model import mxfp4
from gptoss_export.model.decoder import GptOss
from gptoss_export.model.parameters import INV_FREQ

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

    def convert(self, stored, rounding):
        pairs = [mxfp4.quantize(matrix[:]) for matrix in stored]
        return torch.stack([blocks for blocks, _ in pairs]), torch.stack([scales for _, scales in pairs])

    def invert(self, parameters):
        return tuple(mxfp4.dequantize(*parameters).to(torch.bfloat16).unbind())


def recipes(config, tensors):
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
    read = read_parameters(checkpoint)
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


def test_a_layout_is_one_file_and_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "expert_a_tensor.py").write_text(EXPERT_A_TENSOR)
    spec = importlib.util.spec_from_file_location("expert_a_tensor", tmp_path / "expert_a_tensor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "expert_a_tensor", module)
    spec.loader.exec_module(module)
    with pytest.raises(UsageError, match="--layout net: expected original or hf or hf-separate or hf-transposed"):
        layout_for("net", "bf16")
    monkeypatch.setitem(LAYOUTS, module.LAYOUT.name, module.LAYOUT)

    folder = tmp_path / "made"
    original = open_checkpoint(checkpoints["original"])
    write_synthetic(folder, PRESETS["tiny"], layout_for("net", "bf16"), 7, CPU)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout is module.LAYOUT and not checkpoint.keeps_experts
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
        parts = [part for recipe in layout.recipes(PRESETS["tiny"], {}).values() for part in recipe.parts]
        assert layout_of({part.name: (part.shape, part.dtypes[0]) for part in parts}) is layout
    assert layout_of({"foreign": ((1,), "F32")}) is None


def test_the_option_offers_every_preset() -> None:
    (preset,) = (option for option in make_checkpoint.command.params if option.name == "preset")
    assert isinstance(preset.type, click.Choice) and set(preset.type.choices) == set(PRESETS)
