"""What a caller may ask of a runner: stop tokens, sampling, streams, refused requests, and what a process needs."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import RUN_ALONE
from gptoss_export import Runner, SamplingParams, load
from gptoss_export.artifact.manifest import load_manifest, save_manifest
from gptoss_export.errors import ArtifactError, RunError


def test_a_sequence_stops_alone(runner: Runner, sequence: list[int]) -> None:
    prompts = [sequence[:9], sequence[20:60], sequence[5:70]]
    free = runner.generate_batch(prompts, 30, stop_tokens=())
    stop = free[1].tokens[4]
    stopped = runner.generate_batch(prompts, 30, stop_tokens=[stop])
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 30
        assert after.tokens == before.tokens[:end]
        assert after.finish == ("stop" if stop in before.tokens else "length")


def test_stop_tokens_default_to_the_artifacts(
    runner: Runner, artifact: Path, tmp_path: Path, sequence: list[int]
) -> None:
    """The artifact is loaded again with a stop token that the model does choose."""
    assert runner.manifest.stop_tokens == (511,)
    free = runner.generate(sequence[:10], 30, stop_tokens=()).tokens
    stop = free[7]
    assert 511 not in free and stop not in free[:5]
    folder = shutil.copytree(artifact, tmp_path / "artifact", copy_function=_link)
    (folder / "manifest.json").unlink()
    save_manifest(dataclasses.replace(load_manifest(artifact), stop_tokens=(3, stop)), folder)
    stopping = load(folder)
    expected = free[: free.index(stop) + 1]
    result = stopping.generate(sequence[:10], 30)
    assert (result.tokens, result.finish) == (expected, "stop")
    assert [token.id for token in stopping.stream(sequence[:10], 30)] == expected
    assert stopping.generate(sequence[:10], 30, stop_tokens=()).tokens == free
    assert runner.generate(sequence[:10], 30).tokens == free


def _link(source: str, destination: str) -> None:
    Path(destination).hardlink_to(source)


def test_sampling(runner: Runner, sequence: list[int]) -> None:
    def tokens(**params: Any) -> list[int]:
        return runner.generate(sequence[:30], 12, SamplingParams(**params), stop_tokens=()).tokens

    assert tokens(temperature=0.9, top_k=1) == tokens()
    assert tokens(temperature=0.9, seed=4) == tokens(temperature=0.9, seed=4)
    assert tokens(temperature=0.9, seed=4) != tokens(temperature=0.9, seed=5)
    batch = runner.generate_batch(
        [sequence[:30], sequence[:30]], 12, [SamplingParams(), SamplingParams(0.9, seed=4)], stop_tokens=()
    )
    assert batch[0].tokens == tokens() and batch[1].tokens == tokens(temperature=0.9, seed=4)


def test_stream_is_generate(runner: Runner, sequence: list[int]) -> None:
    streamed = [(token.id, token.logprob) for token in runner.stream(sequence[:10], 20, stop_tokens=())]
    whole = runner.generate(sequence[:10], 20, stop_tokens=())
    assert streamed == list(zip(whole.tokens, whole.logprobs, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.generate([]), "no tokens"),
        (lambda r: r.generate([1] * 4401), "prompt: 4401 tokens exceed the context of 4400"),
        (lambda r: r.generate([1.5]), "expected whole numbers"),
        (lambda r: r.generate([1, 512]), "token 512: expected ids of 0 to 511"),
        (lambda r: r.generate([-1]), "token -1"),
        (lambda r: r.generate([1], 0), "max_new_tokens"),
        (lambda r: r.generate([1], sampling=SamplingParams(temperature=-1)), "temperature"),
        (lambda r: r.generate_batch([[1]] * 4), "4 prompts"),
        (lambda r: r.generate_batch([]), "0 prompts"),
        (lambda r: r.generate_batch([[1]] * 2, sampling=[SamplingParams()]), "1 parameters for 2 prompts"),
        (lambda r: r.stream([1] * 5000), "prompt: 5000 tokens exceed"),
        (lambda r: r.prefill_logits([1] * 5000), "5000 more exceed"),
        (lambda r: r.score([1] * 5000), "5000 more exceed"),
        (lambda r: r.prefill([]), "no tokens"),
        (lambda r: r.prefill([1], slot=3), "slot 3"),
        (lambda r: r.prefill([1], slot=-1), "slot -1"),
        (lambda r: r.prefill([1] * 4401), "exceed the context of 4400"),
        (lambda r: r.decode([1]), "found 1 tokens"),
        (lambda r: r.decode([None, 600, None]), "token 600"),
        (lambda r: r.truncate(1), "the sequence has 0 tokens"),
        (lambda r: r.score([1]), "found 1 tokens"),
        (lambda r: r.reset(9), "slot 9"),
    ],
)
def test_refused(runner: Runner, call: Callable[[Runner], object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        call(runner)


def test_runs_where_only_torch_is_installed(artifact: Path, runner: Runner) -> None:
    done = subprocess.run([sys.executable, "-c", RUN_ALONE, artifact], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(runner.generate([1, 2, 3], 5, stop_tokens=()).tokens)


ANOTHER_DEFAULT_DEVICE = """
import sys, torch
torch.set_default_device("meta")
import gptoss_export
from gptoss_export import SamplingParams
runner = gptoss_export.load(sys.argv[1])
print(runner.generate([1, 2, 3], 5, SamplingParams(0.8, seed=3), stop_tokens=()).tokens, len(runner.score([1, 2, 3])))
runner.decode([5, None, None])
"""


def test_the_callers_default_device_changes_nothing(artifact: Path, runner: Runner) -> None:
    code = [sys.executable, "-c", ANOTHER_DEFAULT_DEVICE, artifact]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens = runner.generate([1, 2, 3], 5, SamplingParams(0.8, seed=3), stop_tokens=()).tokens
    assert done.stdout.strip() == f"{tokens} 2"


def test_a_changed_weight_is_refused_although_the_code_runs(artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    path = next(iter(sorted((folder / "weights").glob("*.safetensors"))))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=f"weights/{path.name}: sha256"):
        load(folder)
    assert load(folder, verify_hashes=False).length() == 0


def test_loading_is_timed_by_stage(loaded: Runner) -> None:
    assert list(loaded.load_seconds) == [
        "read the manifest",
        "check files",
        "hash the code",
        "open the device",
        "begin to load weights",
        "load programs",
        "wait for the weights",
        "allocate",
        "wait for the weights' hashes",
    ]
