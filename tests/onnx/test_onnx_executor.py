"""The executor on a CPU: slots, failed calls, logits, sampling; a runner without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_helpers import KINDS, PROMPT, build_onnx, cpu_artifacts
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from gptoss_export import Engine, SamplingParams, load
from gptoss_export.checkpoint.synthetic import PRESETS
from gptoss_export.errors import RunError
from gptoss_export.model.sampling_state import Choice
from gptoss_export.runtime.choosing import Chooser, StepOutput
from gptoss_export.runtime.executor import Outputs, Prompt, Sampling
from gptoss_export.runtime.sampler_numpy import choose as choose_in_numpy
from gptoss_export.runtime.sampling_buffers import SamplingBuffers
from gptoss_export.runtime.with_torch.choices import IN_TORCH
from gptoss_export.runtime.with_torch.tensors import TorchTensors
from gptoss_export.verification.metric import TOLERANCES, deviation


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return deviation(torch.from_numpy(found), torch.from_numpy(expected)).within(TOLERANCES[torch.float32])


ALONE = """
import sys
for name in ("torch", "safetensors", "onnx", "transformers", "click", "rich", "triton"):
    sys.modules[name] = None  # as if it were not installed
from gptoss_export import SamplingParams, load
runner = load(sys.argv[1])
print(runner.generate([1, 2, 3], 8, stop_tokens=()).tokens)
print(runner.generate([1, 2, 3], 8, SamplingParams(0.8, top_k=50, top_p=0.9, seed=3), stop_tokens=()).tokens)
compiling = ("compiler", "kernels", "checkpoint", "building", "targets.base_compiler")
assert not [name for name in sys.modules if name.startswith(tuple(f"gptoss_export.{part}" for part in compiling))]
"""


@pytest.mark.parametrize("kind", KINDS)
def test_runs_with_onnxruntime_and_numpy_alone(artifacts, artifact, kind):
    done = subprocess.run([sys.executable, "-c", ALONE, artifacts[kind]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = load(artifact)  # compiled, and drawing its tokens in torch
    params = SamplingParams(), SamplingParams(0.8, top_k=50, top_p=0.9, seed=3)
    expected = [other.generate([1, 2, 3], 8, param, stop_tokens=()).tokens for param in params]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_serves_more_requests_than_slots(artifacts, kind):
    runner = load(artifacts[kind])
    prompts = [PROMPT, [5, 6], PROMPT[:70], [9], PROMPT[3:60]]
    params = [SamplingParams(0.8, seed=index) if index % 2 else SamplingParams() for index in range(len(prompts))]
    engine = Engine(runner)
    together = engine.generate(prompts, 6, params, stop_tokens=())
    engine.close()
    pairs = zip(prompts, params, strict=True)
    alone = [runner.generate(prompt, 6, sampling, stop_tokens=()) for prompt, sampling in pairs]
    assert [result.tokens for result in together] == [result.tokens for result in alone]


@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_apart(artifacts, kind):
    """Idle slots, shortened sequences and fresh starts change nothing for the others."""
    runner = load(artifacts[kind])
    expected = runner.generate(PROMPT, 6, stop_tokens=()).tokens
    batch = runner.generate_batch([[5, 6], PROMPT], 6, stop_tokens=())
    assert batch[1].tokens == expected
    assert batch[0].tokens == runner.generate([5, 6], 6, stop_tokens=()).tokens
    runner.reset()
    first = runner.prefill(PROMPT, 1)
    runner.prefill([9, 8, 7], 0)
    runner.decode([1, None])
    runner.reset(0)
    after = runner.decode([None, int(first.argmax())])[1]
    runner.truncate(len(PROMPT) - 1, 1)
    again = runner.prefill(PROMPT[-1:], 1)
    assert same(again, first)
    assert int(after.argmax()) == expected[1]
    assert runner.length(0) == 0
    assert runner.length(1) == len(PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_slot_is_left_alone(checkpoints, tmp_path, kind):
    """A sequence as long as the context is idle while another decodes; going on with it is refused."""
    runner = load(build_onnx(checkpoints["hf"], tmp_path / "a", kind, max_context=64))
    scores = runner.score(PROMPT[:64], 0)
    runner.prefill(PROMPT[:5], 1)
    runner.decode([None, 3])
    runner.truncate(63, 0)
    last = runner.decode([PROMPT[63], None])[0]
    fresh = load(tmp_path / "a").prefill(PROMPT[:64], 0)
    assert same(last, fresh)
    assert len(scores) == 63
    with pytest.raises(RunError, match="exceed the context of 64"):
        runner.decode([1, None])


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_changes_nothing(artifacts, kind):
    """Neither an error of onnxruntime nor an interruption: the sequence goes on as if it had not been."""
    runner = load(artifacts[kind])
    model = runner.executor.model
    session = model.session
    runner.prefill(PROMPT[:100])

    class Failing:
        def __init__(self, failure: BaseException) -> None:
            self.failure = failure

        def io_binding(self):
            return session.io_binding()

        def run(self, *_):
            raise self.failure

        run_with_iobinding = run

    failures = (
        MemoryError("no memory"),
        MemoryError(),
        RuntimeError("x"),
        ort_errors.Fail("x"),
        ort_errors.RuntimeException("x"),
    )
    for failure, expected in (*((error, RunError) for error in failures), (KeyboardInterrupt(), KeyboardInterrupt)):
        model.session = Failing(failure)
        with pytest.raises(expected):
            runner.prefill(PROMPT[100:])
        with pytest.raises(expected):
            runner.decode([5, None])
        model.session = session
        assert runner.length() == 100
    last = runner.prefill(PROMPT[100:])
    assert same(last, load(artifacts[kind]).prefill(PROMPT))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made_by", ["zeros", "empty", "ones", "array", "arange", "ascontiguousarray", "zeros_like"])
def test_memory_that_ends_within_a_call(artifacts, kind, made_by, monkeypatch):
    """Whatever array is one too many, the caller gets a RunError, and the sequence goes on."""
    runner = load(artifacts[kind])
    runner.prefill(PROMPT[:100])
    calls = {
        "prefill": lambda: runner.prefill(PROMPT[100:]),
        "decode": lambda: runner.decode([5, None]),
        "no token": lambda: runner.decode([None, None]),
        "step": lambda: runner.generate(PROMPT, 2, stop_tokens=()),
        "score": lambda: runner.score(PROMPT, 1),
    }

    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 1. GiB")

    failed = set()
    for name, call in calls.items():
        if name in ("step", "score"):
            runner.reset()
        with monkeypatch.context() as patch:
            patch.setattr(np, made_by, refuse)
            try:
                call()
            except RunError as error:
                assert "too little memory for this call (Unable to allocate 1. GiB)" in str(error)
                failed.add(name)
    runner.reset()
    assert same(runner.prefill(PROMPT), load(artifacts[kind]).prefill(PROMPT))
    # What a kind of model makes its arrays with.
    used = {
        "default": {"array", "ones", "empty", "arange", "zeros_like"},
        "portable": {"array", "ones", "zeros", "ascontiguousarray", "zeros_like"},
    }
    assert bool(failed) == (made_by in used[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_decode(artifacts, kind):
    runner = load(artifacts[kind])
    runner.prefill([1, 2, 3])
    before = runner.executor.kv_cache_bytes
    assert before > 0
    logits = runner.decode([None, None])
    assert logits.shape == (2, PRESETS["tiny"].vocab_size)
    assert not logits.any()
    assert runner.length() == 3
    assert runner.executor.kv_cache_bytes == before


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_a_prompt(artifacts, kind):
    """140 tokens in chunks of 64: outputs for every token, or one for the last token of the last chunk."""
    executor = load(artifacts[kind]).executor

    def outputs(slot, wanted):
        found, start = [], 0
        while start < len(PROMPT):
            part = executor.chunk_of(Prompt(slot, start, PROMPT[start:]))
            last = wanted if wanted == Outputs.EVERY else Outputs.LAST if part.ends else Outputs.NONE
            found.append((len(part.tokens), [output.logits for output in executor.prefill(part, last)]))
            start += len(part.tokens)
        return found

    every, last = outputs(0, Outputs.EVERY), outputs(1, Outputs.LAST)
    assert [(count, [len(logits) for logits in blocks]) for count, blocks in every] == [
        (64, [64]),
        (64, [64]),
        (12, [12]),
    ]
    assert [(count, len(blocks)) for count, blocks in last] == [(64, 0), (64, 0), (12, 1)]
    assert same(last[-1][1][0], every[-1][1][0][-1:])


def test_logits_and_scores(artifacts):
    runner = load(artifacts["default"])
    rows = np.concatenate(list(runner.prefill_logits(PROMPT)))
    assert rows.shape == (len(PROMPT), PRESETS["tiny"].vocab_size)
    assert rows.dtype == np.float32
    logs = torch.from_numpy(rows).log_softmax(-1)[:-1].gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert torch.allclose(torch.from_numpy(runner.score(PROMPT)), logs, atol=1e-4)
    kept = runner.generate(PROMPT, 3, stop_tokens=(), keep_logits=True)
    assert [int(row.argmax()) for row in kept.logits] == kept.tokens
    stale = runner.prefill_logits(PROMPT)
    next(stale)
    runner.reset()
    with pytest.raises(RunError, match="another call used this runner"):
        next(stale)


def test_tokens_are_drawn_as_in_torch():
    """The same tokens and log probabilities for the same logits, parameters, seeds and positions."""
    params = [
        SamplingParams(),
        SamplingParams(1e-46),
        SamplingParams(0.7, seed=-5),
        SamplingParams(1.3, top_k=7, seed=2**62),
        SamplingParams(0.9, top_p=0.6),
        SamplingParams(2.0, 40, 0.9, 11),
    ]
    generator = torch.Generator().manual_seed(0)
    buffers = SamplingBuffers(len(params), 500, TorchTensors(torch.device("cpu")))
    buffers.set(dict(enumerate(map(Sampling, params))))
    chooser = Chooser(buffers, IN_TORCH)
    for trial in range(50):
        logits = 3 * torch.randn(len(params), 500, generator=generator)
        positions = torch.randint(0, 100_000, (len(params),), generator=generator)
        total = logits.logsumexp(-1)
        output = StepOutput(logits, logits.argmax(-1), logits.amax(-1) - total, total)
        for choice in (Choice.MOST_LIKELY, Choice.LIMITED):
            tokens, logprobs, *_ = chooser.choose(output, positions, torch.arange(len(params)), choice)
            found, found_logprobs = choose_in_numpy(
                logits.numpy(), positions.tolist(), dict(enumerate(params)) if choice else {}
            )
            assert found.tolist() == tokens.tolist(), trial
            assert np.allclose(found_logprobs, logprobs.numpy(), atol=1e-5)
