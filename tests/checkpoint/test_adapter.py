"""LoRA adapters that are merged: PEFT makes them, and merges the same ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from artifacts import compile_nothing
from gptoss_export import BuildOptions, build, verify
from gptoss_export.checkpoint import open_checkpoint
from gptoss_export.errors import CheckpointError, UsageError

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION, "r": 4, "lora_alpha": 8},
    "two projections, rank-stabilized": {"target_modules": ["q_proj", "v_proj"], "r": 8, "use_rslora": True},
    "attention and the unembedding": {"target_modules": [*ATTENTION, "lm_head"], "r": 2},
    "ranks and alphas by pattern": {
        "target_modules": ATTENTION,
        "r": 4,
        "rank_pattern": {"k_proj": 3, r"layers\.1\.self_attn\.o_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 40},
    },
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [1, 3]},
}


def made(
    checkpoints: dict[str, Path], folder: Path, dtype: torch.dtype = torch.bfloat16, **settings: Any
) -> dict[str, torch.Tensor]:
    """An adapter of random numbers in `folder`, and the weights that PEFT makes of it and the checkpoint."""
    torch.manual_seed(3)
    model = GptOssForCausalLM.from_pretrained(checkpoints["hf-bf16"], dtype=dtype)
    wrapped = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False))
    wrapped.save_pretrained(folder)
    return dict(wrapped.merge_and_unload().named_parameters())


def edited(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_does(checkpoints: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The same bits, in every layout that stores attention in 16 bits."""
    theirs = made(checkpoints, tmp_path / "adapter", **KINDS[kind])
    for layout in "hf", "original", "hf-separate":
        ours = open_checkpoint(checkpoints[layout], tmp_path / "adapter")
        plain = open_checkpoint(checkpoints[layout])
        changed = 0
        for name in ours.parameters():
            if ".experts." in name:
                continue
            parts = [theirs[name.replace("qkv", letter)] for letter in "qkv"] if "qkv" in name else [theirs[name]]
            assert torch.equal(ours.parameter(name), torch.cat([part.data for part in parts])), name
            changed += not torch.equal(ours.parameter(name), plain.parameter(name))
        assert changed > 1


def test_an_artifact_links_the_shards_and_has_the_merged_weights(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(checkpoints, tmp_path / "adapter", **KINDS["attention"])
    compile_nothing(monkeypatch)
    artifact = tmp_path / "artifact"
    manifest = build(checkpoints["hf"], artifact, BuildOptions("aoti", "cpu", adapter=tmp_path / "adapter"))
    assert manifest.provenance.options["adapter"] == "adapter"
    name = "model.layers.2.self_attn.qkv_proj.weight"
    (part,) = manifest.weights[name].parts
    stored = load_file(artifact / part.file)[part.tensor]
    assert torch.equal(stored, open_checkpoint(checkpoints["hf"], tmp_path / "adapter").parameter(name))
    (blocks,) = manifest.weights["model.layers.2.mlp.experts.down_proj_blocks"].parts
    shard = Path(blocks.file).name
    assert (artifact / blocks.file).samefile(checkpoints["hf"] / shard)
    with pytest.raises(
        UsageError, match=r"artifact was built with the adapter 'adapter': give its folder with --adapter"
    ):
        verify(artifact, checkpoints["hf"])


def test_verify_with_an_adapter_that_was_not_merged(
    checkpoints: dict[str, Path], uncompiled: Path, tmp_path: Path
) -> None:
    made(checkpoints, tmp_path / "adapter", **KINDS["attention"])
    with pytest.raises(UsageError, match=r"--adapter adapter: .* was built without an adapter"):
        verify(uncompiled, checkpoints["hf"], adapter=tmp_path / "adapter")


def test_the_oracle_gets_the_merged_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    theirs = made(checkpoints, tmp_path / "adapter", **KINDS["attention and the unembedding"])
    for layout in "hf", "hf-bf16":
        checkpoint = open_checkpoint(checkpoints[layout], tmp_path / "adapter")
        found = dict(checkpoint.transformers_model(torch.bfloat16, torch.device("cpu")).named_parameters())
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True, expected False"),
        ({"bias": "lora_only"}, "bias is 'lora_only', expected 'none'"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save is \['embed_tokens'\]"),
        ({"r": 5}, "the rank of model.layers.0.self_attn.k_proj is 5, its factors have 4"),
        ({"lora_alpha": "much"}, "lora_alpha of model.layers.0.self_attn.k_proj is 'much', expected a number"),
    ],
)
def test_settings_that_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made(checkpoints, tmp_path / "adapter", **KINDS["attention"])
    edited(tmp_path / "adapter", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(checkpoints["hf"], tmp_path / "adapter")


def test_tensors_that_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """All of them in one error."""
    made(checkpoints, tmp_path / "adapter", **KINDS["attention"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    first, second = (f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight" for layer in range(2))
    del tensors[first]
    tensors[second] = torch.zeros(4, 7)
    tensors["base_model.model.model.layers.0.mlp.experts.lora_A.weight"] = torch.zeros(4, 4)
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 4)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(checkpoints["hf"], tmp_path / "adapter")
    found = str(caught.value)
    wrong = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    assert (
        f"1 tensors of experts, such as {wrong}: experts of MXFP4 would lose the adapter; build with --experts" in found
    )
    assert f"{first}: missing" in found and f"{second}: shape [4, 7], expected [4, 96]" in found
    assert "layers.9.self_attn.q_proj.lora_A.weight: expected lora_A and lora_B of q_proj" in found


def test_a_folder_that_holds_no_adapter(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        open_checkpoint(checkpoints["hf"], tmp_path)
    made(checkpoints, tmp_path / "adapter", **KINDS["attention"])
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not found"):
        open_checkpoint(checkpoints["hf"], tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        open_checkpoint(checkpoints["hf"], tmp_path / "adapter")
