"""The target onnx for CUDA: layout of the experts, the graph, refusals; on a GPU (`-m gpu`) parity, batches, the probe."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gptoss_export.build import BuildOptions, build
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_random
from gptoss_export.errors import BuildError
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.targets import TARGETS
from test_gpu import BATCHES

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

CONFIG = dataclasses.replace(PRESETS["tiny"], hidden_size=128, intermediate_size=192)  # QMoE takes steps of 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "checkpoint"
    write_random(folder, CONFIG, LAYOUTS["hf"], 7, torch.device("cpu"), tokenizer=True)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    build(checkpoint, folder, BuildOptions("onnx", "cuda", max_batch=3, max_context=4400, prefill_chunks=(16, 64)))
    return folder


# ---- the layout of the experts -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "groups"), [(2, 1), (6, 3), (128, 2), (384, 4)])
def test_repacked_as_onnxruntime_packs_it(rows, groups):
    """Against onnxruntime's own packer; and back."""
    from onnxruntime.capi import onnxruntime_pybind11_state as own

    from gptoss_export.targets.onnx.repack import repack, unpack

    blocks = torch.randint(0, 256, (rows, groups, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    found = repack(blocks)
    expected = own.pack_fp4_weights_for_cuda_moe_gemm(blocks.flatten(1).numpy(), rows, 32 * groups)
    assert found.shape == (32 * groups, rows // 2)
    assert np.array_equal(found.flatten().numpy(), np.asarray(expected).view(np.uint8).flatten())
    assert torch.equal(unpack(found), blocks)


def test_experts_lie_where_the_model_says(artifact, checkpoint):
    """Blocks repacked, in the shape that QMoE takes them in; scales and biases as the checkpoint has them, by offset."""
    from gptoss_export.targets.onnx.repack import unpack

    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    tensors = {item.name: item for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QMoE"]
    assert len(nodes) == CONFIG.num_hidden_layers
    weights = load_manifest(artifact).weights
    stored = {file: safe_open(checkpoint / Path(file).name, "pt") for file in
              {part.file for weight in weights.values() for part in weight.parts} if "derived" not in file}  # fmt: skip
    for node in nodes:
        for matrix, blocks, scales in ("gate_up", *node.input[2:4]), ("down", *node.input[5:7]):
            assert matrix in blocks and matrix in scales
            assert tensors[scales].data_type == onnx.TensorProto.FLOAT8E8M0
            for name in blocks, scales:
                place = {entry.key: entry.value for entry in tensors[name].external_data}
                (part,) = weights[name].parts
                raw = (artifact / place["location"]).read_bytes()[int(place["offset"]) :][: int(place["length"])]
                found = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(*tensors[name].dims)
                expected = stored[part.file].get_tensor(part.tensor)
                if name == blocks:
                    found = torch.stack([unpack(expert) for expert in found])
                else:
                    assert place["location"] == part.file
                assert torch.equal(found, expected), name


def test_attributes(artifact):
    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    (moe, *_) = [node for node in model.graph.node if node.op_type == "QMoE"]
    said = {item.name: onnx.helper.get_attribute_value(item) for item in moe.attribute}
    assert said["k"] == CONFIG.num_experts_per_tok and said["quant_type"] == b"fp4" and said["swiglu_fusion"] == 1
    assert said["swiglu_limit"] == pytest.approx(CONFIG.swiglu_limit) and said["activation_alpha"] == pytest.approx(1.702)
    windows = [
        next(item.i for item in node.attribute if item.name == "local_window_size")
        for node in model.graph.node if node.op_type == "GroupQueryAttention"
    ]  # fmt: skip
    assert windows == [CONFIG.window(layer) or -1 for layer in range(CONFIG.num_hidden_layers)]
    assert not any(node.domain == "gptoss" for node in model.graph.node)
    config = json.loads((artifact / "genai_config.json").read_text())
    assert "cuda" in config["model"]["decoder"]["session_options"]["provider_options"][0]


# ---- refusals ----------------------------------------------------------------------------------------------


def test_sizes_that_qmoe_computes_wrongly(checkpoints, tmp_path):
    with pytest.raises(BuildError, match="hidden_size: found 96, expected a multiple of 64"):
        build(checkpoints["hf"], tmp_path / "a", BuildOptions("onnx", "cuda"))
    assert not (tmp_path / "a").exists()


def test_what_is_missing_here(artifact, cli, monkeypatch):
    manifest, target = load_manifest(artifact), TARGETS["onnx"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "get_build_info", lambda: "ORT Build Info: build type=Release")
    assert "without its MXFP4 experts" in str(target.problems(manifest, artifact))
    monkeypatch.setattr(ort, "get_build_info", lambda: "ORT Build Info: fp4-qmoe=1, build type=Release")
    assert "MXFP4" not in str(target.problems(manifest, artifact))
    assert "probe.onnx is not in the manifest" in str(target.problems(dataclasses.replace(manifest, files={}), artifact))
    assert "arch: artifact is for portable on cuda" in str(
        target.problems(dataclasses.replace(manifest, archs=("portable",)), artifact)
    )
    if not torch.cuda.is_available():
        code, _, err = cli("run", artifact, "--tokens", "1,2,3")
        assert code == 2 and "torch finds none here" in err and "Traceback" not in err


def test_two_builds_are_the_same(artifact, checkpoint, tmp_path):
    options = BuildOptions("onnx", "cuda", max_batch=3, max_context=4400, prefill_chunks=(16, 64))
    assert build(checkpoint, tmp_path / "a", options).files == load_manifest(artifact).files


# ---- on a GPU ----------------------------------------------------------------------------------------------

ready = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not ready, reason="needs onnxruntime-gpu and a CUDA GPU")]


def gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


@gpu
def test_verify(artifact, checkpoint, cli):
    code, out, err = cli("verify", artifact, "--checkpoint", checkpoint, "--json")
    assert code == 0, out + err


@gpu
def test_batch_idle_and_sampling(artifact):
    code = BATCHES + """
r.reset()
for slot, prompt in enumerate(prompts):
    r.prefill(prompt, slot)
before = r.decode([5, None, None])[0]
r.decode([None, 7, None])  # the step that slot 0 sits out writes behind its sequence
r.truncate(1, 0)
again = r.decode([5, None, None])[0]
assert (before == again).all()
full = list(range(4399))
r.reset(); r.prefill([x % 512 for x in full], 1); r.prefill(prompts[2], 0)
one = r.decode([9, 3, None])[0]; r.truncate(40, 0)
assert (one == r.decode([9, None, None])[0]).all()  # slot 1 is full and idle
r.reset(); r.prefill([x % 512 for x in range(4350)]); r.prefill([7] * 40)  # for padding there is no room: a call of a new kind
late = r.decode([5, None, None])[0]
r.reset(); r.prefill([x % 512 for x in range(4350)] + [7] * 40)
assert ((late - r.decode([5, None, None])[0]).square().mean() / late.square().mean()).sqrt() < 0.02
"""
    done = subprocess.run([sys.executable, "-c", code, artifact], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@gpu
def test_the_probe_sees_another_layout(artifact, tmp_path):
    """Weights in the layout of the checkpoint load and run; the probe tells."""
    from gptoss_export.errors import ArtifactError
    from gptoss_export.targets.onnx.model_cuda import load_model
    from gptoss_export.targets.onnx.repack import unpack

    model = onnx.load(artifact / "probe.onnx")
    for item in model.graph.initializer:
        if item.name.endswith("_blocks"):
            packed = torch.frombuffer(bytearray(item.raw_data), dtype=torch.uint8).view(*item.dims)
            item.raw_data = torch.stack([unpack(expert) for expert in packed]).contiguous().numpy().tobytes()
    onnx.save(model, tmp_path / "probe.onnx")
    with pytest.raises(ArtifactError, match="other values than those that belong to these weights"):
        load_model(load_manifest(artifact), tmp_path, torch.device("cuda", 0))
