"""Programs that take LoRA adapters: their options, their inputs, their graphs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lowering import assert_inputs_are_the_signatures, ops_of
from weights_only import WeightsOnly, use

from gptoss_export import BuildOptions
from gptoss_export.artifact.calls import Role
from gptoss_export.artifact.manifest import Manifest, load_manifest, save_manifest, signatures
from gptoss_export.artifact.programs import Decode, Prefill, Program, Sizes, Unembed, programs_of
from gptoss_export.build_options import resolve
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers
from gptoss_export.compiler.export import trace
from gptoss_export.compiler.lower import kernel_implementations, lower, reference_implementations
from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.kernels.kernel import ConfigChooser

CONFIG = with_layers(PRESETS["tiny"], 2)
PLAIN = Sizes((2,), 64, (32,))
SIZES = dataclasses.replace(PLAIN, adapter_slots=3, adapter_rank=4)
CPU = torch.device("cpu")


class WithAdapters(WeightsOnly):
    def adapter_problem(self, device: str) -> str | None:
        return None


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"adapter_slots": 4}, ["--adapter-slots 4: expected --adapter-rank as well; give both, or neither"]),
        ({"adapter_rank": 8}, ["--adapter-rank 8: expected --adapter-slots as well; give both, or neither"]),
        (
            {"adapter_slots": -1, "adapter_rank": 65},
            ["--adapter-slots -1: expected 1 to 256", "--adapter-rank 65: exp"],
        ),
        (
            {"adapter_slots": True, "adapter_rank": 1.5},
            ["--adapter-slots True: expected", "--adapter-rank 1.5: expected"],
        ),
        (
            {"adapter_slots": 2, "adapter_rank": 8, "tensor_parallel": 2},
            ["--adapter-slots 2: found --tensor-parallel 2, expected 1 rank; leave one out"],
        ),
    ],
)
def test_options_that_are_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], messages: list[str]) -> None:
    use(monkeypatch, WithAdapters())
    with pytest.raises(UsageError) as raised:
        resolve(BuildOptions(device="cpu", **given))
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_targets_that_take_no_adapters(target: str) -> None:
    message = (
        rf"--adapter-slots 2: target {target} compiles no programs that take adapters; .* merge one adapter with --a"
    )
    with pytest.raises(UsageError, match=message):
        resolve(BuildOptions(target, adapter_slots=2, adapter_rank=8))


def test_sizes_of_the_options() -> None:
    _, settings, _ = resolve(BuildOptions(device="cpu", adapter_slots=2, adapter_rank=8))
    assert (settings.sizes.adapter_slots, settings.sizes.adapter_rank) == (2, 8)
    assert (settings.to_json()["adapter_slots"], settings.to_json()["adapter_rank"]) == (2, 8)


@pytest.mark.parametrize("program", [Decode(2), Prefill(32), Unembed(1)], ids=lambda program: program.name)
def test_inputs_behind_those_of_a_program_without_adapters(program: Program) -> None:
    plain, found = (program.signature(CONFIG, sizes, "float32") for sizes in (PLAIN, SIZES))
    assert found.outputs == plain.outputs and found.inputs[: len(plain.inputs)] == plain.inputs
    added = found.inputs[len(plain.inputs) :]
    assert {item.role for item in added} <= {Role.ADAPTER}
    if isinstance(program, Unembed):
        assert not added
        return
    assert [(item.name, item.shape) for item in added[:7]] == [
        ("adapters", (2,)),
        ("adapter.0.q_proj.a", (3, 4, 96)),
        ("adapter.0.q_proj.b", (3, CONFIG.num_attention_heads * CONFIG.head_dim, 4)),
        ("adapter.0.k_proj.a", (3, 4, 96)),
        ("adapter.0.k_proj.b", (3, CONFIG.num_key_value_heads * CONFIG.head_dim, 4)),
        ("adapter.0.v_proj.a", (3, 4, 96)),
        ("adapter.0.v_proj.b", (3, CONFIG.num_key_value_heads * CONFIG.head_dim, 4)),
    ]
    assert (added[-1].name, added[-1].shape) == ("adapter.1.down_proj.b", (3, 8, 96, 4))
    assert len(added) == 1 + 2 * 12


@pytest.mark.parametrize("program", [Decode(2), Prefill(32)], ids=lambda program: program.name)
def test_graphs(program: Program) -> None:
    """Without adapter slots the sublayers are single ops; with them all smaller ops are there, on a GPU too."""
    plain, traced = (trace(program, CONFIG, sizes, torch.float32, CPU) for sizes in (PLAIN, SIZES))
    assert_inputs_are_the_signatures(traced)
    assert {"attention_sublayer", "experts_sublayer"} <= ops_of(plain)
    assert not {"adapter_delta", "adapted_experts"} & ops_of(plain)
    assert {"adapter_delta", "adapted_experts", "sink_attention", "kv_write"} <= ops_of(traced)
    lowered = lower(traced, reference_implementations())
    assert_inputs_are_the_signatures(lowered)
    assert not ops_of(lowered)


def test_on_a_gpu_the_smaller_ops_keep_their_kernels() -> None:
    pytest.importorskip("triton")
    traced = trace(Decode(2), CONFIG, SIZES, torch.bfloat16, CPU)
    lowered = lower(traced, kernel_implementations(ConfigChooser("sm_90")))
    names = {str(node.target) for node in lowered.exported.graph.nodes if "gptoss_triton" in str(node.target)}
    assert any("sink_attention" in name or "attention" in name for name in names), names
    assert not any("sublayer" in name for name in names)


def with_sizes(manifest: Manifest, sizes: Sizes) -> Manifest:
    programs = signatures(programs_of(sizes, "cpu"), manifest.model, sizes, manifest.dtype)
    return dataclasses.replace(manifest, sizes=sizes, programs=programs)


def test_a_manifest_is_written_and_read(uncompiled: Path, tmp_path: Path) -> None:
    manifest = load_manifest(uncompiled)
    assert not any(name.startswith("adapter") for name in manifest.to_json()["sizes"])
    changed = with_sizes(manifest, dataclasses.replace(manifest.sizes, adapter_slots=3, adapter_rank=4))
    save_manifest(changed, tmp_path)
    assert load_manifest(tmp_path) == changed


@pytest.mark.parametrize(
    ("slots", "rank", "message"),
    [
        (3, 0, "sizes.adapter_rank: found 0, expected 1 to 64"),
        (0, 3, "sizes.adapter_slots: found 0, expected 1 to 256"),
        (True, 3, "sizes.adapter_slots: found True, expected 1 to 256"),
        (2, 65, "sizes.adapter_rank: found 65, expected 1 to 64"),
    ],
)
def test_sizes_that_no_build_writes(uncompiled: Path, tmp_path: Path, slots: Any, rank: Any, message: str) -> None:
    manifest = load_manifest(uncompiled)
    data = manifest.to_json()
    data["sizes"] |= {"adapter_slots": slots, "adapter_rank": rank}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        load_manifest(tmp_path)
