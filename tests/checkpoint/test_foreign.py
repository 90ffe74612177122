"""Checkpoints of kinds that no layout reads are refused by name, in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.errors import CheckpointError

BYTES, FLOATS, E4M3 = torch.zeros(2, dtype=torch.uint8), torch.zeros(2), torch.zeros(2).to(torch.float8_e4m3fn)
WORDS = torch.zeros(2, dtype=torch.int32)
EXPERTS = "model.layers.0.mlp.experts."
Q = "model.layers.0.self_attn.q_proj."


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    found = str(caught.value)
    assert "\n" not in found and found.startswith(f"{folder}: ")
    return found


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with config.json alone."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    shutil.copy(checkpoints["hf"] / "config.json", made)
    return made


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


KINDS: list[tuple[str, Mapping[str, torch.Tensor], str]] = [
    (
        "bitsandbytes NF4 in another arrangement",
        {f"{EXPERTS}gate_up_proj": BYTES, f"{EXPERTS}gate_up_proj.quant_state.bitsandbytes__nf4": BYTES},
        "nf4",
    ),
    ("bitsandbytes FP4", {f"{Q}weight.absmax": FLOATS, f"{Q}weight.quant_state.bitsandbytes__fp4": BYTES}, "fp4"),
    ("bitsandbytes 4-bit", {f"{Q}weight.absmax": FLOATS, f"{Q}weight": BYTES}, "absmax"),
    ("bitsandbytes 8-bit", {f"{Q}SCB": FLOATS, f"{Q}weight": torch.zeros(2, dtype=torch.int8)}, "SCB"),
    (
        "ModelOpt NVFP4",
        {f"{Q}weight": BYTES, f"{Q}weight_scale": E4M3, f"{Q}weight_scale_2": FLOATS},
        "q_proj.weight_scale_2",
    ),
    ("compressed-tensors", {f"{Q}weight_packed": WORDS, f"{Q}weight_scale": FLOATS}, "weight_packed"),
    ("GPTQ", {f"{Q}qweight": WORDS, f"{Q}qzeros": WORDS, f"{Q}g_idx": WORDS, f"{Q}scales": FLOATS}, "g_idx"),
    ("AWQ or GPTQ", {f"{Q}qweight": WORDS, f"{Q}qzeros": WORDS, f"{Q}scales": FLOATS}, "qweight"),
    ("FP8", {f"{Q}weight": E4M3, f"{Q}weight_scale": FLOATS}, "q_proj.weight'"),
    ("FP8", {f"{EXPERTS}gate_up_proj": E4M3, f"{EXPERTS}gate_up_proj_scale": FLOATS}, "gate_up_proj'"),
    ("FP8", {f"{Q}weight": BYTES, f"{Q}weight_scale_inv": FLOATS}, "weight_scale_inv"),
    ("quantized MLX", {f"{Q}weight": torch.zeros(2, dtype=torch.uint32), f"{Q}scales": FLOATS}, "weight'"),
    ("a LoRA adapter", {f"base_model.model.{Q}lora_A.weight": FLOATS}, "lora_A"),
    ("experts of a tensor each", {f"{EXPERTS}3.gate_proj.weight": FLOATS, f"{Q}weight": FLOATS}, "3.gate_proj"),
    ("gate and up of the experts apart", {f"{EXPERTS}gate_proj.weight": FLOATS}, "gate_proj"),
    ("names of a training wrapper", {f"module.{Q}weight": FLOATS}, "module."),
]


@pytest.mark.parametrize(("kind", "tensors", "example"), KINDS, ids=[f"{kind}-{name}" for kind, _, name in KINDS])
def test_kinds_by_their_tensors(folder: Path, kind: str, tensors: dict[str, torch.Tensor], example: str) -> None:
    """config.json says MXFP4, as fine-tunes of quantized models often do: the tensors decide."""
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    found = message(folder)
    assert f"found {kind} (such as '" in found and example in found and "which no layout reads; " in found
    set_config(folder, quantization_config=None)
    assert message(folder) == found


@pytest.mark.parametrize(
    ("method", "kind"),
    [("awq", "AWQ"), ("gptq", "GPTQ"), ("quark", "AWQ or GPTQ"), (["gptq"], "AWQ or GPTQ"), (None, "AWQ or GPTQ")],
)
def test_awq_and_gptq_have_the_same_names(folder: Path, method: object, kind: str) -> None:
    save_file({f"{Q}qweight": WORDS, f"{Q}qzeros": WORDS.clone()}, folder / "model.safetensors")
    set_config(folder, quantization_config={"quant_method": method})
    assert f"found {kind} (such as" in message(folder)


def test_config_names_what_no_tensor_does(folder: Path) -> None:
    save_file({f"{Q}weight": WORDS}, folder / "model.safetensors")
    set_config(folder, quantization_config={"quant_method": "quark"})
    found = message(folder)
    assert "found weights of another quantization (quant_method of config.json is 'quark'), which no layout" in found


@pytest.mark.parametrize("layout", ["hf", "hf-bf16", "original"])
def test_what_config_says_refuses_no_right_checkpoint(
    checkpoints: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    folder = shutil.copytree(checkpoints[layout], tmp_path / layout)
    set_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    assert open_checkpoint(folder).layout.name == layout
    (folder / "adapter_config.json").write_text("{}")  # left over from before a merge
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert open_checkpoint(folder).layout.name == layout


def test_a_right_checkpoint_with_one_tensor_missing_is_no_other_kind(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for layout in ("hf", "hf-bf16"):
        folder = shutil.copytree(checkpoints[layout], tmp_path / layout)
        (folder / "model.safetensors.index.json").unlink()
        shard = sorted(folder.glob("*.safetensors"))[-1]
        tensors = load_file(shard)
        name = next(iter(tensors))
        save_file({key: value for key, value in tensors.items() if key != name}, shard)
        with pytest.raises(CheckpointError, match=f"  - {name}: missing$"):
            open_checkpoint(folder)


def test_transposed_experts(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf-bf16"], tmp_path / "transposed")
    name = f"{EXPERTS}gate_up_proj"
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(shard)
    save_file(tensors | {name: tensors[name].mT.contiguous()}, shard)
    with pytest.raises(CheckpointError, match=r"its last two dimensions are swapped: it was stored transposed$"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("model-Q4_K_M.gguf", "found GGUF ('model-Q4_K_M.gguf')"),
        ("pytorch_model-00001-of-00002.bin", "found pickled weights, which run code when they are opened"),
        ("consolidated.00.pth", "found pickled weights"),
        ("__0_0.distcp", "found a checkpoint of a training run"),
        ("tf_model.h5", "found weights of TensorFlow or Flax"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_files_of_other_formats(folder: Path, file: str, kind: str, config: bool) -> None:
    (folder / file).write_bytes(b"GGUF")
    if not config:
        (folder / "config.json").unlink()
    assert f"{kind}" in message(folder)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_alone(folder: Path, weights: str, config: bool) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "openai/gpt-oss-20b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / weights).write_bytes(b"")
    if not config:
        (folder / "config.json").unlink()
    assert "found a LoRA adapter of 'openai/gpt-oss-20b' alone, expected a whole model; merge it" in message(folder)
    (folder / "adapter_config.json").write_text("[")
    assert "found a LoRA adapter alone, expected a whole model; merge it" in message(folder)


def test_an_adapter_beside_shards_without_an_index_is_left_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "beside")
    (folder / "model.safetensors.index.json").unlink()
    save_file({"base_model.model.x.lora_A.weight": FLOATS}, folder / "adapter_model.safetensors")
    assert {path.name for path in open_checkpoint(folder).files.values()} == {
        path.name for path in folder.glob("model-*.safetensors")
    }


def test_paths_that_are_no_folder_of_a_checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\x03\x00")
    assert "found a GGUF file, expected a folder" in message(gguf)
    assert "found a file, expected a folder with config.json and" in message(checkpoints["hf"] / "config.json")
    assert f"holds no config.json; did you mean {checkpoints['hf']}?" in message(checkpoints["hf"].parent)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "manifest.json").write_text("{}")
    assert "found an artifact, expected the checkpoint that it was built from" in message(artifact)
