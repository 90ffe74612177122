"""ONNX artifacts for CUDA on a GPU (`pytest -m gpu`): parity, batches, the probe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx_helpers import cuda_artifact, ort, unpack

from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import ArtifactError
from gptoss_export.targets.onnx.model_cuda import load_model

READY = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not READY, reason="needs onnxruntime-gpu and a CUDA GPU")]

BATCHES = """
import sys
from gptoss_export import SamplingParams, load
r = load(sys.argv[1])
prompts = [[1], list(range(200)), list(range(60, 100))]
together = r.generate_batch(prompts, 40, stop_tokens=())
for prompt, result in zip(prompts, together):
    alone = r.generate(prompt, 40, stop_tokens=())
    assert alone.tokens[:5] == result.tokens[:5], (alone.tokens, result.tokens)
sampled = [r.generate(prompts[1], 20, SamplingParams(0.8, 40, 0.95, s), stop_tokens=()).tokens for s in (1, 1, 2)]
assert sampled[0] == sampled[1] != sampled[2]
r.reset()
for slot, prompt in enumerate(prompts):
    r.prefill(prompt, slot)
before = r.decode([5, None, None])[0]
r.decode([None, 7, None])  # the step in which slot 0 is idle writes behind its sequence
r.truncate(1, 0)
again = r.decode([5, None, None])[0]
assert (before == again).all()
full = list(range(4399))
r.reset(); r.prefill([x % 512 for x in full], 1); r.prefill(prompts[2], 0)
one = r.decode([9, 3, None])[0]; r.truncate(40, 0)
assert (one == r.decode([9, None, None])[0]).all()  # slot 1 is full and idle
# Near the end of the context there is no room for padding: a call of a new shape.
r.reset(); r.prefill([x % 512 for x in range(4350)]); r.prefill([7] * 40)
late = r.decode([5, None, None])[0]
r.reset(); r.prefill([x % 512 for x in range(4350)] + [7] * 40)
assert ((late - r.decode([5, None, None])[0]).square().mean() / late.square().mean()).sqrt() < 0.02
"""


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact."""
    return cuda_artifact(tmp_path_factory)


def test_verify(cuda, cli):
    checkpoint, artifact = cuda
    code, out, err = cli("verify", artifact, "--checkpoint", checkpoint, "--json")
    assert code == 0, out + err


def test_batch_idle_and_sampling(cuda):
    done = subprocess.run([sys.executable, "-c", BATCHES, cuda[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_probe_sees_another_layout(cuda, tmp_path):
    """Weights in the layout of the checkpoint load and run; the probe finds it out."""
    _, artifact = cuda
    model = onnx.load(artifact / "probe.onnx")
    for item in model.graph.initializer:
        if item.name.endswith("_blocks"):
            packed = torch.frombuffer(bytearray(item.raw_data), dtype=torch.uint8).view(*item.dims)
            item.raw_data = torch.stack([unpack(expert) for expert in packed]).contiguous().numpy().tobytes()
    onnx.save(model, tmp_path / "probe.onnx")
    with pytest.raises(ArtifactError, match="other values than these weights give"):
        load_model(load_manifest(artifact), tmp_path, torch.device("cuda", 0))
