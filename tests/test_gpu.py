"""Artifacts for CUDA, built and run on one: `pytest -m gpu`. Building and running are processes of their own."""

import json
import subprocess
import sys

import pytest
import torch

from test_artifact import BLOCKED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]


# Sequences together and alone, and sampling, on a loaded `r`.
BATCHES = """
import sys
from gptoss_export.runtime import Runner, Sampling
r = Runner.load(sys.argv[1])
prompts = [[1], list(range(200)), list(range(60, 100))]
together = r.generate_batch(prompts, 40, stop_tokens=())
for prompt, result in zip(prompts, together):
    alone = r.generate(prompt, 40, stop_tokens=())
    assert alone.tokens[:5] == result.tokens[:5], (alone.tokens, result.tokens)
sampled = [r.generate(prompts[1], 20, Sampling(0.8, 40, 0.95, seed=s), stop_tokens=()).tokens for s in (1, 1, 2)]
assert sampled[0] == sampled[1] != sampled[2]
"""


@pytest.fixture(scope="module")
def cuda_artifact(checkpoints, tmp_path_factory, cli):
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    code, out, err = cli("build", checkpoints["hf"], "-o", folder, "--device", "cuda", "--max-batch", 3,
                         "--max-context", 4400, "--prefill-chunk", 16, "--prefill-chunk", 64, "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["arch"].startswith("sm_")
    return folder


def test_verify(cuda_artifact, checkpoints, cli):
    code, out, err = cli("verify", cuda_artifact, "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err


def test_runs_without_triton(cuda_artifact):
    done = subprocess.run([sys.executable, "-c", BLOCKED, cuda_artifact], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_batch_idle_and_sampling(cuda_artifact):
    code = BATCHES + """
assert r._step._captured[False].early >= 5 * len(r.manifest.model.layer_types)
one = r.generate(prompts[1], 20, Sampling(0.8, top_k=1), stop_tokens=()).tokens
assert one == r.generate(prompts[1], 20, stop_tokens=()).tokens
r.reset(); a = r.prefill(prompts[1]); r.reset(); b = r.prefill(prompts[1])
assert (a == b).all()
"""
    done = subprocess.run([sys.executable, "-c", code, cuda_artifact], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("own_stream", [False, True])
def test_upload(own_stream):
    """Pieces shorter, longer and just as long as the pinned memory, and more of them than there is; on the caller's stream."""
    from gptoss_export.runtime.cuda.upload import _PIECE, upload

    device, generator = torch.device("cuda", 0), torch.Generator().manual_seed(0)
    sizes = [1, 2, _PIECE - 2, _PIECE, _PIECE + 2, 3 * _PIECE + 6, *[5 * _PIECE // 2] * 30]
    sources = [torch.randint(256, (size,), generator=generator, dtype=torch.uint8) for size in sizes]
    sources += [sources[-1].view(torch.bfloat16).view(-1, 1024)]
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
        torch.cuda._sleep(10**9)  # copies of the GPU's come late: pinned memory that is filled too early would show
        filled = [torch.zeros(source.shape, dtype=source.dtype, device=device) for source in sources]
        upload(list(zip(filled, sources, strict=True)), device)
        assert torch.cuda.current_stream().query()
        found = [tensor.cpu() for tensor in filled]
    assert all(torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8)) for a, b in zip(found, sources, strict=True))
