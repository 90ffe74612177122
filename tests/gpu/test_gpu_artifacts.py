"""Artifacts for CUDA, built and run on a GPU: `pytest -m gpu`. Building and running are processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artifacts import RUN_ALONE
from gptoss_export.cuda.gpu import gpu
from gptoss_export.cuda.upload import _PIECE, upload
from gptoss_export.host_memory import HostBytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]

# Sequences together and alone, and sampling.
BATCHES = """
import sys
import gptoss_export
from gptoss_export import SamplingParams
r = gptoss_export.load(sys.argv[1])
prompts = [[1], list(range(200)), list(range(60, 100))]
together = r.generate_batch(prompts, 40, stop_tokens=())
for prompt, result in zip(prompts, together):
    alone = r.generate(prompt, 40, stop_tokens=())
    assert alone.tokens[:5] == result.tokens[:5], (alone.tokens, result.tokens)
sampled = [r.generate(prompts[1], 20, SamplingParams(0.8, 40, 0.95, seed=s), stop_tokens=()).tokens for s in (1, 1, 2)]
assert sampled[0] == sampled[1] != sampled[2]
"""

# Most kernels of the captured step are launched early; top_k 1 is greedy; a prefill gives the same bits again.
STEPS = """
assert r.executor.steps[1].captured[False].captured.early_launches >= 5 * len(r.manifest.model.layer_types)
one = r.generate(prompts[1], 20, SamplingParams(0.8, top_k=1), stop_tokens=()).tokens
assert one == r.generate(prompts[1], 20, stop_tokens=()).tokens
r.reset(); a = r.prefill(prompts[1]); r.reset(); b = r.prefill(prompts[1])
assert a.tolist() == b.tolist()
"""

# A slot that held NaN gives the same bits after a reset. It does not touch its neighbour. What lies behind a sequence
# does not matter to it. A broken token spoils no token before it in its chunk.
POISONED = """
import sys
import torch
import gptoss_export
r = gptoss_export.load(sys.argv[1])
programs, name = r.executor.programs.values(), "model.embed_tokens.weight"
caches = [tensor for key, tensor in r.executor.programs["decode_1"].inputs.items() if "_cache." in key]
def poison(slot, first=0):
    held = {} if slot is None else r.slots.pages.pages(slot)
    with torch.inference_mode():
        for cache in caches:
            cache[slice(None) if slot is None else 0] = float("nan")
            for pages in held.values():
                for at, page in enumerate(pages):
                    if page:
                        cache[page, :, max(0, first - 64 * at):] = float("nan")
    torch.cuda.synchronize()
def run(slot, token=60):
    rows = torch.cat([block.clone() for block in r.prefill_logits([*range(200, 230), token, 5, 6], slot)])
    r.truncate(30, slot)
    steps = [r.decode([None] * slot + [t] + [None] * (2 - slot))[slot].clone() for t in (7, 8)]
    return rows[:30], torch.stack(steps), rows[30:]
def same(slot):
    return all(torch.equal(got, want) for got, want in zip(run(slot), clean[slot]))
clean = [run(slot) for slot in range(3)]
r.truncate(31, 1)
beside = r.decode([7, 8, None])[1].clone()  # a step of two has other kernels, and other bits, than a step of one
poison(None)
assert r.decode([7, None, None])[0].isnan().any()
r.reset()
assert same(0)
poison(0)
assert r.decode([7, None, None])[0].isnan().any() and same(1)
r.truncate(31, 1)
poison(1, first=31)
assert torch.equal(r.decode([7, 8, None])[1], beside)
weight = next(program.inputs[name] for program in programs if name in program.inputs)
with torch.inference_mode():  # in place: captured programs read this memory
    weight[60] = float("nan")
before, again, after = run(2)
assert torch.isnan(after).any(dim=-1).all() and torch.isfinite(clean[2][2]).all()
assert torch.equal(before, clean[2][0]) and torch.equal(again, clean[2][1])
"""


# Greedy with penalties beside drawn tokens: each token is the largest of the logits that it was chosen from, adjusted
# on the host. A mask of even tokens. Then a fork, and the next turn of a chat.
ADJUSTED = """
import sys
import torch
import gptoss_export
from gptoss_export import Engine, SamplingParams
from gptoss_export.runtime.adjust_numpy import Adjustment
from gptoss_export.runtime.executor import Sampling
r = gptoss_export.load(sys.argv[1])
params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, logit_bias={7: 3.0},
                        min_new_tokens=5, top_logprobs=4)
prompt, vocabulary = list(range(100)), r.manifest.model.vocab_size
engine = Engine(r)
others = [engine.submit([n], 40, SamplingParams(0.9, seed=n), stop_tokens=()) for n in range(2)]
result = engine.submit(prompt, 30, params, keep_logits=True).result()
adjustment = Adjustment(Sampling(params, prompt, (), frozenset(r.manifest.stop_tokens)), vocabulary)
for at, (token, row) in enumerate(zip(result.tokens, result.logits, strict=True)):
    found = adjustment.apply(row.numpy(), len(prompt) - 1 + at)
    assert found[token] >= found.max() - 1e-4
    adjustment.count(token)
    assert result.top_logprobs[at][0][0] == row.argmax() and len(result.top_logprobs[at]) == 4
even = sum(1 << token for token in range(0, vocabulary, 2)).to_bytes(4 * -(-vocabulary // 32), "little")
masked = engine.submit(prompt, 20, stop_tokens=(), allowed=lambda tokens: even).result()
assert len(masked.tokens) == 20 and all(token % 2 == 0 for token in masked.tokens)
turn = engine.submit(prompt, 40, stop_tokens=()).result()
before = engine.stats().reused_tokens
again = engine.submit([*prompt, *turn.tokens, 5], 10, stop_tokens=()).result()
assert engine.stats().reused_tokens == before + 128
engine.close()
fresh = r.generate([*prompt, *turn.tokens, 5], 10, stop_tokens=())
assert fresh.tokens[:3] == again.tokens[:3]
def ends(slot):
    return r.prefill(range(300, 330), slot).clone(), r.decode([None] * slot + [9] + [None] * (2 - slot))[slot].clone()
r.reset(); r.prefill(prompt + prompt); want = ends(0)
r.reset(); r.prefill(prompt + prompt); r.fork(0, 2); r.prefill([1, 2, 3])
assert all(torch.equal(one, other) for one, other in zip(ends(2), want))
"""


def run(code: str, artifact: Path) -> str:
    """What the code prints, with the artifact as its argument."""
    done = subprocess.run([sys.executable, "-c", code, artifact], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_verify(cuda_artifact: Path, checkpoints: dict[str, Path], cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cli("verify", cuda_artifact, "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err


def test_runs_where_only_torch_is_installed(cuda_artifact: Path) -> None:
    assert len(json.loads(run(RUN_ALONE, cuda_artifact))) == 5


@pytest.mark.parametrize("before", ["", "import torch"], ids=["without torch", "with torch"])
def test_batch_idle_and_sampling(cuda_artifact: Path, before: str) -> None:
    run(before + BATCHES + STEPS, cuda_artifact)


def test_a_slot_that_held_nan_serves_again(cuda_artifact: Path) -> None:
    run(POISONED, cuda_artifact)


def test_adjusted_choices_a_fork_and_a_known_prefix(cuda_artifact: Path) -> None:
    run(ADJUSTED, cuda_artifact)


@pytest.mark.parametrize("own_stream", [False, True])
def test_upload(own_stream: bool) -> None:
    """Pieces shorter, longer and just as long as the pinned memory, and more than it holds; on the caller's stream."""
    device, generator = torch.device("cuda", 0), torch.Generator().manual_seed(0)
    sizes = [1, 2, _PIECE - 2, _PIECE, _PIECE + 2, 3 * _PIECE + 6, *[5 * _PIECE // 2] * 30]
    sources = [torch.randint(256, (size,), generator=generator, dtype=torch.uint8) for size in sizes]
    sources += [sources[-1].view(torch.bfloat16).view(-1, 1024)]
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
        torch.cuda._sleep(10**9)  # the GPU copies late: pinned memory that is filled too early would show
        filled = [torch.zeros(source.shape, dtype=source.dtype, device=device) for source in sources]
        memories = [HostBytes(memoryview(source.view(-1).view(torch.uint8).numpy())) for source in sources]
        copies = list(zip(filled, memories, strict=True))
        upload(copies, gpu(0), torch.cuda.current_stream().cuda_stream)
        assert torch.cuda.current_stream().query()
        found = [tensor.cpu() for tensor in filled]
    for tensor, source in zip(found, sources, strict=True):
        assert torch.equal(tensor.view(-1).view(torch.uint8), source.view(-1).view(torch.uint8))
