"""LoRA adapters of experts, merged into plain matrices: PEFT makes them, and merges the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_values import unpacked
from safetensors.torch import load_file, save_file
from test_adapter import edited
from test_adapter import made as made_in

from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.errors import CheckpointError

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers."
CLOSE = {"rtol": 2**-7, "atol": 1e-6}  # a rounding of bfloat16: sums are in another order
KINDS: dict[str, dict[str, Any]] = {
    "both matrices": {"target_parameters": BOTH, "r": 4, "lora_alpha": 8},
    "the other order": {"target_parameters": BOTH[::-1], "r": 2},
    "gate_up, rank-stabilized": {"target_parameters": BOTH[:1], "r": 8, "use_rslora": True},
    "down": {"target_parameters": BOTH[1:], "r": 3},
    "with attention": {"target_parameters": BOTH, "target_modules": ["q_proj", "o_proj"], "r": 4},
}

Tensors = dict[str, torch.Tensor]


def made(checkpoints: dict[str, Path], folder: Path, **settings: Any) -> Tensors:
    """An adapter, and the merged weights rounded to bfloat16 once. PEFT computes them in float32: in bfloat16 it rounds
    what the adapter adds before it adds it."""
    theirs = made_in(checkpoints, folder, torch.float32, **settings)
    return {name: value.data.to(torch.bfloat16) for name, value in theirs.items()}


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of the adapter."""
    found = {name: value.contiguous() for name, value in change(load_file(folder / WEIGHTS)).items()}
    save_file(found, folder / WEIGHTS)


def assert_merged(checkpoint: Path, adapter: Path, theirs: Tensors, adapted: list[str]) -> None:
    """The experts are those that PEFT made, and only those of the adapted matrices are not the checkpoint's."""
    opened, plain = open_checkpoint(checkpoint, adapter, "bf16"), unpacked(checkpoint, "bf16")
    for layer in range(4):
        for matrix in BOTH:
            name = f"model.layers.{layer}.{matrix}"
            ours, wanted = opened.parameter(f"{name}_weight"), theirs[name].mT
            torch.testing.assert_close(ours, wanted, **CLOSE)
            assert int((ours != wanted).sum()) <= ours.numel() / 1000
            assert torch.equal(ours.float(), plain[name].float()) != (matrix in adapted)


@pytest.mark.parametrize("layout", ["hf", "hf-bf16", "hf-separate-nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_does(checkpoints: dict[str, Path], tmp_path: Path, kind: str, layout: str) -> None:
    theirs = made(checkpoints, tmp_path / "adapter", **{"target_modules": [], **KINDS[kind]})
    assert_merged(checkpoints[layout], tmp_path / "adapter", theirs, KINDS[kind]["target_parameters"])


def test_factors_of_an_older_peft(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Before 0.19 inputs and outputs were the other way round: the same delta from factors that changed places."""
    theirs = made(checkpoints, tmp_path / "adapter", target_modules=[], target_parameters=BOTH, r=4)

    def swapped(tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            if "lora_A" in name:  # [E r, in] to [in, r E]
                of_b = value.view(8, -1, value.size(1)).permute(2, 1, 0).reshape(value.size(1), -1)
                found[name.replace("lora_A", "lora_B")] = of_b
            else:  # [out, r E] to [E r, out]
                of_a = value.view(value.size(0), -1, 8).permute(2, 1, 0).reshape(-1, value.size(0))
                found[name.replace("lora_B", "lora_A")] = of_a
        return found

    changed(tmp_path / "adapter", swapped)
    edited(tmp_path / "adapter", peft_version="0.18.0")
    assert_merged(checkpoints["hf"], tmp_path / "adapter", theirs, BOTH)


def test_factors_for_each_expert(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """As a model with an nn.Linear for each expert has them: here of the same numbers, one expert without any."""
    theirs = made(checkpoints, tmp_path / "adapter", target_modules=[], target_parameters=BOTH, r=4)

    def separate(tensors: Tensors) -> Tensors:
        found = {}
        for name, value in tensors.items():
            matrix = "gate_up_projs" if "base_layer" in name else "down_projs"
            for expert in range(8):
                part = value.chunk(8)[expert] if "lora_A" in name else value[:, expert::8]
                found[name.replace(".base_layer", "").replace("experts.", f"experts.{matrix}.{expert}.")] = part
        return {name: value for name, value in found.items() if "layers.2" not in name or "projs.5." not in name}

    changed(tmp_path / "adapter", separate)
    plain = unpacked(checkpoints["hf"], "bf16")
    for matrix in BOTH:
        theirs[f"model.layers.2.{matrix}"][5] = plain[f"model.layers.2.{matrix}"][5].T
    assert_merged(checkpoints["hf"], tmp_path / "adapter", theirs, BOTH)


def test_the_oracle_gets_the_merged_experts(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    theirs = made(checkpoints, tmp_path / "adapter", target_modules=["v_proj"], target_parameters=BOTH, r=2)
    opened = open_checkpoint(checkpoints["hf"], tmp_path / "adapter", "bf16")
    for name, value in opened.transformers_model(torch.bfloat16, torch.device("cpu")).named_parameters():
        torch.testing.assert_close(value, theirs[name], **CLOSE)


def test_what_is_wrong_is_said_at_once(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    made(checkpoints, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=BOTH, r=4)

    def broken(tensors: Tensors) -> Tensors:
        del tensors[f"{PREFIX}0.mlp.experts.lora_B.weight"]
        tensors[f"{PREFIX}1.mlp.experts.lora_A.weight"] = torch.zeros(32, 7)
        tensors[f"{PREFIX}2.mlp.experts.lora_magnitude_vector"] = torch.zeros(4)
        tensors[f"{PREFIX}9.mlp.experts.lora_A.weight"] = torch.zeros(32, 64)
        tensors[f"{PREFIX}9.mlp.experts.lora_B.weight"] = torch.zeros(96, 32)
        tensors[f"{PREFIX}3.mlp.experts.gate_up_projs.8.lora_A.weight"] = torch.zeros(4, 96)
        tensors[f"{PREFIX}3.mlp.experts.gate_up_projs.8.lora_B.weight"] = torch.zeros(128, 4)
        return tensors

    changed(tmp_path / "adapter", broken)
    edited(tmp_path / "adapter", r=5)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(checkpoints["hf"], tmp_path / "adapter", "bf16")
    found = str(caught.value)
    for message in (
        f"{PREFIX}0.mlp.experts.lora_B.weight: missing",
        "1.mlp.experts: factors [32, 7] and [96, 32], expected [8 r, 96] and [128, 8 r] of gate_up_proj or [8 r, 64]",
        f"{PREFIX}2.mlp.experts.lora_magnitude_vector: expected lora_A and lora_B of experts",
        f"{PREFIX}9.mlp.experts: the model has 4 layers of 8 experts, counted from 0",
        f"{PREFIX}3.mlp.experts.gate_up_projs.8: the model has 4 layers of 8 experts, counted from 0",
        "the rank of model.layers.2.mlp.experts.down_proj is 5, its factors have 4",
    ):
        assert message in found, message
