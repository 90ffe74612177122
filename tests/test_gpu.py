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
