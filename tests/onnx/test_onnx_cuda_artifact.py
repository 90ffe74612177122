"""The ONNX model for CUDA, built without a GPU: the layout of the experts, the graph, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_helpers import CUDA_CONFIG, CUDA_OPTIONS, cuda_artifact, ort, texts_of_this_machine, unpack
from safetensors import safe_open

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import BuildError
from gptoss_export.progress import Progress
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.base_loader import loader
from gptoss_export.targets.onnx.options import Options
from gptoss_export.targets.onnx.repack import repack


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact."""
    return cuda_artifact(tmp_path_factory)


@pytest.mark.parametrize(("rows", "groups"), [(2, 1), (6, 3), (128, 2), (384, 4)])
def test_repacked_as_onnxruntime_packs_it(rows, groups):
    """Against onnxruntime's own packer; and back."""
    from onnxruntime.capi import onnxruntime_pybind11_state as own

    blocks = torch.randint(0, 256, (rows, groups, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    found = repack(blocks)
    expected = own.pack_fp4_weights_for_cuda_moe_gemm(blocks.flatten(1).numpy(), rows, 32 * groups)
    assert found.shape == (32 * groups, rows // 2)
    assert np.array_equal(found.flatten().numpy(), np.asarray(expected).view(np.uint8).flatten())
    assert torch.equal(unpack(found), blocks)


def test_experts_lie_where_the_model_says(cuda):
    """Blocks repacked, in the shape that QMoE reads; scales and biases as the checkpoint has them, by offset."""
    checkpoint, artifact = cuda
    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    tensors = {item.name: item for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QMoE"]
    assert len(nodes) == CUDA_CONFIG.num_hidden_layers
    weights = load_manifest(artifact).weights
    files = {part.file for weight in weights.values() for part in weight.parts if "derived" not in part.file}
    stored = {file: safe_open(checkpoint / Path(file).name, "pt") for file in files}
    for node in nodes:
        for matrix, blocks, scales in ("gate_up", *node.input[2:4]), ("down", *node.input[5:7]):
            assert matrix in blocks
            assert matrix in scales
            assert tensors[scales].data_type == onnx.TensorProto.FLOAT8E8M0
            for name in blocks, scales:
                entries = {entry.key: entry.value for entry in tensors[name].external_data}
                (part,) = weights[name].parts
                data = (artifact / entries["location"]).read_bytes()
                raw = data[int(entries["offset"]) :][: int(entries["length"])]
                found = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(*tensors[name].dims)
                expected = stored[part.file].get_tensor(part.tensor)
                if name == blocks:
                    found = torch.stack([unpack(expert) for expert in found])
                else:
                    assert entries["location"] == part.file
                assert torch.equal(found, expected), name


def test_attributes(cuda):
    _, artifact = cuda
    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    (moe, *_) = [node for node in model.graph.node if node.op_type == "QMoE"]
    found = {item.name: onnx.helper.get_attribute_value(item) for item in moe.attribute}
    assert found["k"] == CUDA_CONFIG.num_experts_per_tok
    assert found["quant_type"] == b"fp4"
    assert found["swiglu_fusion"] == 1
    assert found["swiglu_limit"] == pytest.approx(CUDA_CONFIG.swiglu_limit)
    assert found["activation_alpha"] == pytest.approx(1.702)
    windows = [
        next(item.i for item in node.attribute if item.name == "local_window_size")
        for node in model.graph.node
        if node.op_type == "GroupQueryAttention"
    ]
    assert windows == [CUDA_CONFIG.window(layer) or -1 for layer in range(CUDA_CONFIG.num_hidden_layers)]
    assert not any(node.domain == "gptoss" for node in model.graph.node)
    config = json.loads((artifact / "genai_config.json").read_text())
    assert "cuda" in config["model"]["decoder"]["session_options"]["provider_options"][0]


def test_defaults():
    target = compiler("onnx")
    assert target.default_archs("cuda", Options()) == ("any",)  # whether or not this machine has a GPU
    assert target.default_prefill_chunks("cuda") == (2048,)
    assert target.default_prefill_chunks("cpu") == (128,)
    assert target.current_arch("cuda") == ("any" if torch.cuda.is_available() else None)


class Notes(Progress):
    """Keeps the texts of a build."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[str] = []
        self.notes: list[str] = []

    def update(self, text: str) -> None:
        self.updates.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_two_builds_are_the_same(cuda, tmp_path):
    """And the second copy of the experts is announced, with its size."""
    checkpoint, artifact = cuda
    notes = Notes()
    assert build(checkpoint, tmp_path / "a", CUDA_OPTIONS, notes).files == load_manifest(artifact).files
    assert "repack the experts, layer 4 of 4" in notes.updates
    assert any("writing 0.0 GB in addition to the weights" in note for note in notes.notes)


def test_names_no_folder_of_the_building_machine(cuda):
    """The probe is looked at too."""
    checkpoint, artifact = cuda
    assert (artifact / "probe.onnx").exists()
    assert texts_of_this_machine(artifact, checkpoint) == []


def test_sizes_that_qmoe_computes_wrongly(checkpoints, tmp_path):
    with pytest.raises(BuildError, match="hidden_size: found 96, expected a multiple of 64"):
        build(checkpoints["hf"], tmp_path / "a", BuildOptions("onnx", "cuda"))
    assert not (tmp_path / "a").exists()


def test_what_is_missing_here(cuda, cli, monkeypatch):
    _, artifact = cuda
    manifest, target = load_manifest(artifact), loader("onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "get_build_info", lambda: "ORT Build Info: build type=Release")
    assert "without its MXFP4 experts" in str(target.problems(manifest, artifact))
    monkeypatch.setattr(ort, "get_build_info", lambda: "ORT Build Info: fp4-qmoe=1, build type=Release")
    assert "MXFP4" not in str(target.problems(manifest, artifact))
    without_files = dataclasses.replace(manifest, files={})
    assert "probe.onnx is missing from the manifest" in str(target.problems(without_files, artifact))
    portable = dataclasses.replace(manifest, target_options={"portable": True})
    assert "found portable on cuda, expected cpu" in str(target.problems(portable, artifact))
    if not torch.cuda.is_available():
        code, _, err = cli("run", artifact, "--tokens", "1,2,3")
        assert code == 2
        assert "torch finds none here" in err
        assert "Traceback" not in err
