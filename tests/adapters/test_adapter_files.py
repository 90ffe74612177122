"""Files of adapters that a runner reads: every form that PEFT stores them in, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_samples import PREFIX, RANK, WEIGHTS, edited, make_adapter, store, stored
from transformers import GptOssForCausalLM

from gptoss_export import Runner
from gptoss_export.artifact.manifest import Manifest, load_manifest
from gptoss_export.errors import CheckpointError
from gptoss_export.runtime.adapter_files import AdapterFile

Tensors = dict[str, torch.Tensor]


def factors(folder: Path, manifest: Manifest) -> Tensors:
    """The factors of an adapter as one adapter slot has them."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[manifest.dtype]
    found = AdapterFile(folder, manifest).factors()
    return {name: torch.frombuffer(bytearray(numbers), dtype=dtype) for name, numbers in found}


@pytest.fixture
def manifest(eager_folder: Path) -> Manifest:
    return load_manifest(eager_folder)


def copied(folder: Path, to: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> Path:
    shutil.copytree(folder, to)
    store(to, change(stored(folder)))
    edited(to, **settings)
    return to


def as_before_0_19(tensors: Tensors) -> Tensors:
    """Inputs and outputs of the experts' factors the other way round: the same delta."""
    found = {}
    for name, value in tensors.items():
        if "experts" not in name:
            found[name] = value
        elif "lora_A" in name:  # [E r, in] to [in, r E]
            turned = value.view(8, -1, value.size(1)).permute(2, 1, 0).reshape(value.size(1), -1)
            found[name.replace("lora_A", "lora_B")] = turned
        else:  # [out, r E] to [E r, out]
            turned = value.view(value.size(0), -1, 8).permute(2, 1, 0).reshape(-1, value.size(0))
            found[name.replace("lora_B", "lora_A")] = turned
    return found


def of_each_expert(tensors: Tensors) -> Tensors:
    found = {}
    for name, value in tensors.items():
        matrix = "gate_up_projs" if "base_layer" in name else "down_projs"
        for expert in range(8):
            part = value.chunk(8)[expert] if "lora_A" in name else value[:, expert::8]
            found[name.replace(".base_layer", "").replace("experts.", f"experts.{matrix}.{expert}.")] = part
    return found


@pytest.mark.parametrize("form", ["before 0.19", "each expert", "the other order", "bfloat16"])
def test_forms_of_the_same_adapter(
    manifest: Manifest, adapters: dict[str, Path], tmp_path: Path, oracles: Any, form: str
) -> None:
    """All become the same factors, which test_adapter_parity compares with PEFT."""
    usual, to = adapters["experts"], tmp_path / "adapter"
    if form == "before 0.19":
        copied(usual, to, as_before_0_19, peft_version="0.18.0")
    elif form == "each expert":
        copied(usual, to, of_each_expert)
    elif form == "bfloat16":
        usual = copied(usual, tmp_path / "rounded", lambda given: {k: v.bfloat16().float() for k, v in given.items()})
        copied(usual, to, lambda given: {name: value.bfloat16() for name, value in given.items()})
    else:
        names = {name: name.replace("experts.", "experts.base_layer.", 1) for name in stored(usual)}

        def turned(given: Tensors) -> Tensors:
            return {
                names[name] if "base_layer" not in name else name.replace(".base_layer", ""): value
                for name, value in given.items()
            }

        copied(usual, to, turned)
    found, wanted = factors(to, manifest), factors(usual, manifest)
    assert found.keys() == wanted.keys() and len(found) == 16
    for name, value in wanted.items():
        assert torch.equal(found[name], value) and value.any(), name


def test_factors_are_padded_and_scaled(manifest: Manifest, adapters: dict[str, Path], oracles: Any) -> None:
    """Rank 4 of 8, alpha 8: a scale of 2 that is in B."""
    found, file = factors(adapters["attention"], manifest), stored(adapters["attention"])
    a, b = (file[f"{PREFIX}1.self_attn.k_proj.lora_{factor}.weight"] for factor in "AB")
    assert torch.equal(found["adapter.1.k_proj.a"].view(RANK, -1), torch.cat([a, torch.zeros_like(a)]))
    assert torch.equal(found["adapter.1.k_proj.b"].view(-1, RANK), torch.cat([2 * b, torch.zeros_like(b)], dim=1))


def test_the_slot_of_another_adapter_keeps_nothing_of_it(eager: Runner, adapters: dict[str, Path]) -> None:
    memory = eager.executor.adapter_memory
    assert memory is not None
    eager.load_adapter("a", adapters["both"])
    eager.load_adapter("b", adapters["both"])
    before = {name: torch.as_tensor(tensor)[1].clone() for name, tensor in memory.bound.items() if name != "adapters"}
    eager.unload_adapter("a")
    eager.load_adapter("c", adapters["attention"])
    for name, tensor in memory.bound.items():
        if name != "adapters":
            assert torch.as_tensor(tensor)[0].any() == ("gate_up" not in name and "down" not in name), name
            assert torch.equal(torch.as_tensor(tensor)[1], before[name]) and not torch.as_tensor(tensor)[2].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_those_that_torch_rounds(
    manifest: Manifest, adapters: dict[str, Path], oracles: Any, dtype: str
) -> None:
    found = factors(adapters["attention"], dataclasses.replace(manifest, dtype=dtype))
    b = stored(adapters["attention"])[f"{PREFIX}0.self_attn.o_proj.lora_B.weight"]
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    assert torch.equal(found["adapter.0.o_proj.b"].view(-1, RANK)[:, :4], (2 * b).to(kind))


def test_everything_wrong_is_said_at_once(
    manifest: Manifest, adapters: dict[str, Path], tmp_path: Path, oracles: Any
) -> None:
    def broken(given: Tensors) -> Tensors:
        del given[f"{PREFIX}0.self_attn.q_proj.lora_B.weight"]
        given[f"{PREFIX}1.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 7)
        given[f"{PREFIX}0.mlp.router.lora_A.weight"] = torch.zeros(8, 96)
        given["base_model.model.lm_head.lora_A.weight"] = torch.zeros(8, 96)
        given["base_model.model.lm_head.lora_B.weight"] = torch.zeros(512, 8)
        given[f"{PREFIX}2.mlp.experts.lora_A.weight"] = torch.zeros(64, 5)
        given[f"{PREFIX}3.mlp.experts.down_projs.1.lora_A.weight"] = torch.zeros(8, 64)
        given[f"{PREFIX}3.mlp.experts.down_projs.1.lora_B.weight"] = torch.zeros(96, 8)
        given[f"{PREFIX}3.self_attn.v_proj.lora_A.weight"] = torch.zeros(8, 96, dtype=torch.uint8)
        return given

    folder = copied(adapters["both"], tmp_path / "adapter", broken, use_dora=True)
    with pytest.raises(CheckpointError) as caught:
        AdapterFile(folder, manifest)
    for message in (
        f"{folder}: an adapter that this artifact cannot load",
        "use_dora is True, expected False",
        f"{PREFIX}0.self_attn.q_proj.lora_B.weight: missing",
        f"{PREFIX}1.self_attn.q_proj.lora_A.weight: shape [8, 7], expected [8, 96]",
        f"{PREFIX}0.mlp.router.lora_A.weight: expected lora_A and lora_B of q_proj",
        "lm_head: an artifact with adapter slots takes factors of attention and of experts alone; train",
        "2.mlp.experts: factors [64, 5] and [96, 64], expected [8 r, 96] and [128, 8 r] of gate_up_proj or",
        "3.mlp.experts.down_projs.1.lora_A.weight: belongs to the same matrix as",
        "3.self_attn.v_proj.lora_A.weight: dtype U8, expected BF16 or F32 or F16",
    ):
        assert message in str(caught.value), message


def test_a_rank_that_is_too_large(manifest: Manifest, transformer: GptOssForCausalLM, tmp_path: Path) -> None:
    make_adapter(transformer, tmp_path / "a", target_modules=["q_proj"], r=9)
    message = r"q_proj\.lora_A\.weight: rank 9, expected at most 8 \(--adapter-rank of the build\); build again with a"
    with pytest.raises(CheckpointError, match=message):
        AdapterFile(tmp_path / "a", manifest)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_not_finite(
    manifest: Manifest, adapters: dict[str, Path], tmp_path: Path, oracles: Any, number: float
) -> None:
    """Also those that the scale of 2 makes infinite."""
    name = f"{PREFIX}0.self_attn.q_proj.lora_B.weight"

    def broken(given: Tensors) -> Tensors:
        given[name][3, 1] = number
        return given

    folder = copied(adapters["attention"], tmp_path / "adapter", broken)
    with pytest.raises(CheckpointError, match=rf"{name}: 1 of \d+ numbers are not finite, or not with the scale"):
        AdapterFile(folder, manifest)


def test_files_that_are_no_adapter(manifest: Manifest, adapters: dict[str, Path], tmp_path: Path, oracles: Any) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["attention"], folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not found"):
        AdapterFile(folder, manifest)
    (folder / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        AdapterFile(folder, manifest)
    store(folder, {})
    with pytest.raises(CheckpointError, match="has no tensors"):
        AdapterFile(folder, manifest)
