"""Checkpoints as other tools write them: merged in several arrangements, in NF4, in NVFP4.

bitsandbytes and torch's own float8 are the oracles for the values.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from checkpoint_values import assert_equal, unpacked
from safetensors.torch import load_file, save_file

from gptoss_export.checkpoint import Checkpoint, open_checkpoint
from gptoss_export.checkpoint.layouts.layout import Rounding
from gptoss_export.errors import CheckpointError
from gptoss_export.model import mxfp4

EXPERTS = "model.layers.1.mlp.experts."
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])

Tensors = dict[str, torch.Tensor]


def rewritten(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The checkpoint, with its tensors changed, in one file."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: Tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    found = {name: value.contiguous().clone() for name, value in change(tensors).items()}
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    return target


def in_nf4(name: str, matrix: torch.Tensor, nested: bool, blocksize: int = 64) -> tuple[Tensors, torch.Tensor]:
    """A matrix [out, in] as bitsandbytes stores it, and what it makes of it."""
    given = matrix.to(torch.bfloat16)
    packed, state = functional.quantize_4bit(given, blocksize=blocksize, quant_type="nf4", compress_statistics=nested)
    parts = {f"{name}.{end}": value for end, value in state.as_dict(packed=True).items()}
    return {name: packed, **parts}, functional.dequantize_4bit(packed, state)


def experts_of(checkpoint: Checkpoint, layer: int = 1) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices [E, out, in] of a layer that a build has."""
    for name in "gate_up_proj", "down_proj":
        stem = f"model.layers.{layer}.mlp.experts.{name}"
        yield name, mxfp4.dequantize(checkpoint.parameter(f"{stem}_blocks"), checkpoint.parameter(f"{stem}_scales"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weight", [False, True], ids=["plain", "with .weight"])
def test_transposed_experts_of_any_dtype(
    checkpoints: dict[str, Path], tmp_path: Path, dtype: torch.dtype, weight: bool
) -> None:
    """MXFP4's values come back exactly from any of these dtypes; biases may be wider than the rest."""

    def change(tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                found[f"{name}.weight" if weight else name] = value.mT.to(dtype)
            elif ".mlp.experts." in name:
                found[name.replace("_bias", ".bias") if weight else name] = value.float()
            else:
                found[name] = value
        return found

    folder = rewritten(checkpoints["hf-bf16"], tmp_path / "made", change)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout.name == "hf-transposed"
    found, expected = unpacked(folder), unpacked(checkpoints["hf"])
    assert_equal({name: value.float() for name, value in found.items()}, {k: v.float() for k, v in expected.items()})


def test_only_some_layers_are_transposed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        return tensors | {f"{EXPERTS}gate_up_proj": tensors[f"{EXPERTS}gate_up_proj"].mT}

    folder = rewritten(checkpoints["hf-bf16"], tmp_path / "made", change)
    with pytest.raises(CheckpointError, match="its last two dimensions are swapped: it was stored transposed"):
        open_checkpoint(folder)


def test_an_expert_a_tensor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """As PEFT saves a merge over a base with an nn.Linear for each expert: written here without the layout's writer."""

    def change(tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                found |= {f"{name}s.{expert}.weight": matrix.T for expert, matrix in enumerate(value)}
            elif name.endswith(("gate_up_proj_bias", "down_proj_bias")):
                stem = name.removesuffix("_bias")
                found |= {f"{stem}s.{expert}.bias": bias for expert, bias in enumerate(value)}
            else:
                found[name.replace("mlp.router.", "mlp.router.linear.")] = value
        return found

    folder = rewritten(checkpoints["hf-bf16"], tmp_path / "made", change)
    assert open_checkpoint(folder).layout.name == "hf-separate"
    assert_equal(unpacked(folder), unpacked(checkpoints["hf"]))


@pytest.mark.parametrize("nested", [False, True], ids=["absmax in float32", "absmax quantized"])
@pytest.mark.parametrize("attention", [False, True], ids=["attention in 16 bits", "attention in NF4"])
def test_nf4(checkpoints: dict[str, Path], tmp_path: Path, nested: bool, attention: bool) -> None:
    """The values are bitsandbytes' own: those of the experts are kept, or rounded to MXFP4."""
    expected: Tensors = {}

    def change(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, value in tensors.items():
            if ".mlp.experts." in name and name.endswith(".weight"):
                parts, expected[name] = in_nf4(name, 1.1 * value.float(), nested)
                found |= parts
            elif attention and "self_attn" in name and name.endswith("proj.weight"):
                parts, expected[name] = in_nf4(name, value, nested)
                found |= parts
            else:
                found[name] = value
        return found

    folder = rewritten(checkpoints["hf-separate"], tmp_path / "made", change)
    kept = open_checkpoint(folder)
    assert kept.layout.name == "hf-separate-nf4"
    assert kept.config.experts_format == "nf4-32"  # a row of 96 weights has a half of a block of 64
    values = unpacked(folder)
    for name in "gate_up_proj", "down_proj":
        exact = torch.stack([expected[f"{EXPERTS}{name}s.{expert}.weight"] for expert in range(8)])
        assert torch.equal(values[f"{EXPERTS}{name}"].to(torch.bfloat16), exact)
    lost = Rounding()
    for _ in kept.converted_groups(lost):
        pass
    assert lost.relative == 0
    checkpoint = open_checkpoint(folder, experts="mxfp4")
    for name, matrices in experts_of(checkpoint):
        for expert, found in enumerate(matrices):
            exact = expected[f"{EXPERTS}{name}s.{expert}.weight"]
            stored = checkpoint.recipes[f"{EXPERTS}{name}"]
            slices = [checkpoint.stored(part.name) for part in stored.parts]
            own = stored.convert.storage.matrix(slices, expert)  # type: ignore[union-attr]
            assert torch.equal(own.to(torch.bfloat16), exact)
            assert torch.equal(found, mxfp4.dequantize(*mxfp4.quantize(own)))
    if attention:
        parts = [expected[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv"]
        assert torch.equal(checkpoint.parameter("model.layers.1.self_attn.qkv_proj.weight"), torch.cat(parts))
        out = checkpoint.parameter("model.layers.1.self_attn.o_proj.weight")
        assert torch.equal(out, expected["model.layers.1.self_attn.o_proj.weight"])
    rounding = Rounding()
    for _ in checkpoint.converted_groups(rounding):
        pass
    assert 0.05 < rounding.relative < 0.2


def test_attention_in_nf4_beside_other_experts(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """bitsandbytes quantizes each nn.Linear, and stacks of experts are none."""
    name = "model.layers.0.self_attn.o_proj.weight"
    expected: Tensors = {}

    def change(tensors: Tensors) -> Tensors:
        parts, expected[name] = in_nf4(name, tensors.pop(name), nested=True)
        return tensors | parts

    for layout in "hf", "hf-bf16":
        folder = rewritten(checkpoints[layout], tmp_path / layout, change)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.layout.name == layout and checkpoint.keeps_experts == (layout == "hf")
        assert torch.equal(checkpoint.parameter(name), expected[name])


def test_a_broken_description_of_nf4(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    name = f"{EXPERTS}down_projs.2.weight"

    def broken(number: int, edit: Callable[[Tensors], Tensors]) -> str:
        folder = rewritten(checkpoints["hf-separate-nf4"], tmp_path / f"{number}", edit)
        checkpoint = open_checkpoint(folder)
        with pytest.raises(CheckpointError) as caught:
            list(checkpoint.converted_groups())
        return str(caught.value)

    def state(text: bytes) -> Callable[[Tensors], Tensors]:
        value = torch.tensor(list(text), dtype=torch.uint8)
        return lambda tensors: tensors | {f"{name}.quant_state.bitsandbytes__nf4": value}

    good = {"blocksize": 32, "shape": [96, 64]}
    assert f"{name}.quant_state.bitsandbytes__nf4: cannot be read as JSON" in broken(0, state(b"{"))
    for number, bad in enumerate(({"shape": [64, 96]}, {"blocksize": 0}, {"blocksize": 7.5}), start=1):
        assert "does not describe the weight" in broken(number, state(json.dumps(good | bad).encode()))
    half = json.dumps(good | {"blocksize": 64}).encode()
    assert f"{name}.absmax: found 192 numbers, expected 96, one for 64" in broken(4, state(half))


def test_a_missing_tensor_of_nf4_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    name = f"{EXPERTS}down_projs.2.weight.absmax"

    def change(tensors: Tensors) -> Tensors:
        del tensors[name]
        return tensors

    with pytest.raises(CheckpointError, match=rf"layout hf-separate-nf4\)\n  - {name}: missing$"):
        open_checkpoint(rewritten(checkpoints["hf-separate-nf4"], tmp_path / "made", change))


@pytest.mark.parametrize("turned", [False, True], ids=["[E, out, in]", "[E, in, out]"])
@pytest.mark.parametrize("for_each", [False, True], ids=["one factor", "a factor for each expert"])
def test_nvfp4(checkpoints: dict[str, Path], tmp_path: Path, turned: bool, for_each: bool) -> None:
    """Codes, scales and factors of random bits: the values are computed here from the format's definition."""
    random = torch.Generator().manual_seed(5)
    expected: dict[str, torch.Tensor] = {}

    def change(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for stem in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            count, rows, half = tensors[stem].shape
            codes = torch.randint(0, 16, (count, rows, 2 * half), generator=random)
            scales = torch.randint(0x28, 0x58, (count, rows, half // 8), generator=random, dtype=torch.uint8)
            scales = scales.view(torch.float8_e4m3fn)
            factors = 0.01 + torch.rand(count if for_each else 1, generator=random)
            signed = torch.where(codes >= 8, -1.0, 1.0) * E2M1[codes % 8]
            wide = scales.float().repeat_interleave(16, dim=2)
            expected[stem] = signed * wide * factors[:, None, None]
            packed = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            found[stem] = packed.mT if turned else packed
            found[f"{stem}_weight_scale"] = scales.mT if turned else scales
            found[f"{stem}_weight_scale_2"] = factors if for_each else factors[0]
        return found

    checkpoint = open_checkpoint(rewritten(checkpoints["hf-nvfp4"], tmp_path / "made", change))
    assert checkpoint.layout.name == "hf-nvfp4"
    for name, found in experts_of(checkpoint):
        assert torch.equal(found, mxfp4.dequantize(*mxfp4.quantize(expected[f"{EXPERTS}{name}"])))
