"""On a GPU, a process that cannot import torch gives the bits of one that has it; and one that imports it later harms
nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RUNTIME = Path(__file__).parent.parent / "runtime"
CALLS = RUNTIME / "without_torch_calls.py"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]

# torch is imported beside a runner that does without, and takes and frees memory of the same allocator.
BESIDE = """
import sys
import numpy as np
import gptoss_export
from gptoss_export import SamplingParams
r = gptoss_export.load(sys.argv[1])
assert "torch" not in sys.modules
tokens, adjusted = list(range(150)), SamplingParams(0.9, seed=5, repetition_penalty=1.3)
def results():
    r.reset()
    logits = r.prefill(tokens)
    drawn = r.generate(tokens[:40], 30, sampling=adjusted, stop_tokens=()).tokens
    batch = [result.tokens for result in r.generate_batch([[1], tokens, tokens[60:]], 30, stop_tokens=())]
    return logits, np.array(logits), drawn, batch
_, *expected = results()
import torch
taken = []
for step in range(6):
    x = torch.randn(2048, 2048, device="cuda", requires_grad=True)
    (x @ x).relu().sum().backward()
    taken.append(torch.full((64 << 20,), float(step), device="cuda"))
    if step % 2:
        taken.pop(0)
        torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode(step % 2 == 1):
        array, *found = results()
    assert np.array_equal(found[0], expected[0]) and found[1:] == expected[1:], step
    theirs = torch.from_dlpack(array)
    assert theirs.is_cuda and theirs.data_ptr() == array.data_ptr()
    assert np.array_equal(theirs.cpu().numpy(), expected[0])
    del array
    assert all((tensor == tensor[0]).all() for tensor in taken)
    theirs.fill_(0)
    del theirs
"""

# Memory is given back with a runner.
AGAIN = """
import gc, sys
import gptoss_export
from gptoss_export.cuda.gpu import gpu
used = []
for _ in range(4):
    r = gptoss_export.load(sys.argv[1])
    r.generate_batch([[1], [2, 3], [4]], 20, stop_tokens=())
    del r
    gc.collect()
    gpu(0).synchronize()
    used.append(gpu(0).memory()[1] - gpu(0).memory()[0])
assert used[3] <= used[1] + (8 << 20), used
"""


def run(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_bits(cuda_artifact: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"{kind}.npz" for kind in ("with", "without")}
    code = f"import sys; sys.path.insert(0, {str(RUNTIME)!r})\nimport torch, numpy, without_torch_calls as calls\n"
    run(code + "numpy.savez(sys.argv[2], **calls.results(sys.argv[1]))", cuda_artifact, files["with"])
    run(f"import runpy; runpy.run_path({str(CALLS)!r}, run_name='__main__')", cuda_artifact, files["without"])
    expected, found = (np.load(file) for file in files.values())
    assert set(found) == set(expected) and len(expected["engine"]) == 7 * 12
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.parametrize("code", [BESIDE, AGAIN], ids=["beside torch", "again and again"])
def test_a_process(cuda_artifact: Path, code: str) -> None:
    run(code, cuda_artifact)
