"""What a build writes and refuses, and that a build that fails or is killed leaves nothing that loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import OPTIONS, NothingCompiled, compile_nothing
from gptoss_export import BuildOptions, build, load
from gptoss_export.artifact.files import combined_hash, describe_file
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.compiler.export import TracedProgram
from gptoss_export.errors import ArtifactError, BuildError, CheckpointError, UsageError
from gptoss_export.kernels.tuned_configs import TunedConfigs, write_tuned_configs
from gptoss_export.progress import Progress
from gptoss_export.targets.aoti import cross_compile
from gptoss_export.targets.aoti.compile import AotiCompiler
from gptoss_export.targets.base_compiler import CompileJob

SMALL = BuildOptions("aoti", "cpu", max_context=64, prefill_chunks=(8,))


def test_the_manifest_says_what_was_asked_for(uncompiled: Path, checkpoints: dict[str, Path]) -> None:
    manifest = load_manifest(uncompiled)
    assert (manifest.target, manifest.device, manifest.dtype) == ("aoti", "cpu", "float32")
    assert manifest.sizes.max_batch == OPTIONS["max_batch"] and manifest.sizes.max_context == OPTIONS["max_context"]
    assert manifest.sizes.prefill_chunks == OPTIONS["prefill_chunks"]
    assert manifest.source == "hf (layout hf)"
    assert manifest.provenance.options == {
        "target": "aoti",
        "device": "cpu",
        "arch": manifest.arch,
        "dtype": "float32",
        "max_batch": 3,
        "widths": [1, 3],
        "max_context": 4400,
        "tensor_parallel": 1,
        "expert_parallel": False,
        "prefill_chunks": [16, 64],
        "stop_tokens": [511],
        "tuned_configs": [],
        "adapter": None,
        "experts": "mxfp4",
        "cpu_isa": None,
    }
    assert manifest.versions["torch"] == torch.__version__
    sources = [*checkpoints["hf"].glob("*.safetensors"), checkpoints["hf"] / "config.json"]
    assert manifest.provenance.source_sha256 == combined_hash({path.name: describe_file(path) for path in sources})


def test_a_target_without_the_format_of_the_experts(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AotiCompiler, "expert_formats", ("mxfp4",))
    with pytest.raises(UsageError, match=r"--experts nf4: target aoti compiles for mxfp4$"):
        build(checkpoints["hf-separate-nf4"], tmp_path / "a", BuildOptions("aoti", "cpu"))
    assert not (tmp_path / "a").exists()


def test_progress(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is timed, and the resolved options are shown before the work starts."""
    compile_nothing(monkeypatch, programs=["unembed_1"])
    shown: list[tuple[str, Any]] = []
    progress = Progress()
    monkeypatch.setattr(progress, "facts", lambda title, values: shown.append((title, values)))
    manifest = build(checkpoints["hf"], tmp_path / "out", SMALL, progress)
    assert list(progress.seconds) == [
        "read the checkpoint",
        "check the weights",
        "write the weights",
        f"export for {manifest.arch}",
        f"compile unembed_1 for {manifest.arch}",
        "hash the files",
    ]
    assert shown == [("build", manifest.provenance.options)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "abacus"}, "--target abacus"),
        ({"device": "tpu"}, "--device tpu"),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"max_batch": 0, "prefill_chunks": (0,)}, "(?s)--max-batch 0.*--prefill-chunk 0"),
        ({"prefill_chunks": ()}, "--prefill-chunk"),
        ({"max_context": 16, "prefill_chunks": (8, 17)}, r"--prefill-chunk 17: expected at most --max-context \(16\)"),
        ({"max_context": 0}, "--max-context 0: expected 1 or more"),
        ({"max_context": 131073}, "max_position_embeddings"),
        (
            {"target_options": object()},
            "target_options: found builtins.object, expected gptoss_export.targets.aoti.options.Options",
        ),
        ({"tuned_configs": (Path("x.json"),)}, "aoti for cpu has none of the project's kernels; leave it out"),
    ],
)
def test_options_are_checked_before_anything_is_made(
    checkpoints: dict[str, Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions(**({"target": "aoti", "device": "cpu"} | options)))
    assert list(tmp_path.iterdir()) == []


def test_default_chunks_are_shortened_to_the_context(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_nothing(monkeypatch, programs=())
    manifest = build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cpu", max_context=16))
    assert manifest.sizes.prefill_chunks == (16,)


def test_where_it_cannot_be_built(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match="--arch sm_90: aoti compiles here for"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cpu", arch="sm_90"))
    with pytest.raises(UsageError, match="exists already"):
        build(checkpoints["hf"], tmp_path, BuildOptions("aoti", "cpu"))
    with pytest.raises(UsageError, match="not a folder"):
        build(checkpoints["hf"], tmp_path / "a" / "b", BuildOptions("aoti", "cpu"))
    with pytest.raises(CheckpointError, match="not a folder"):
        build(tmp_path / "none", tmp_path / "out", BuildOptions("aoti", "cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="CXX=no-such-compiler: not found; AOTInductor compiles C"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))
def test_a_gpu_must_be_named_where_there_is_none(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_export.targets.aoti.compile.current_gpu_arch", lambda: None)
    with pytest.raises(UsageError, match="no cuda device to build for; choose one of sm_80"):
        build(checkpoints["hf"], tmp_path / "out", BuildOptions("aoti", "cuda"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(cross_compile.problems()), reason="; ".join(cross_compile.problems()))
def test_tuned_configs_that_serve_nothing_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who names a file expects it to be used. One for another arch is refused before anything is read."""
    compile_nothing(monkeypatch, programs=["unembed_1"])
    mine = tmp_path / "mine.json"
    options = BuildOptions("aoti", "cuda", arch="sm_90", max_context=64, prefill_chunks=(8,), tuned_configs=(mine,))
    write_tuned_configs(TunedConfigs("sm_90", "a GPU", {"triton": "3.7.1"}, ()), mine)
    with pytest.raises(UsageError, match=r"mine\.json: serves none of the kernels of this build"):
        build(checkpoints["hf"], tmp_path / "out", options)
    write_tuned_configs(TunedConfigs("sm_80", "a GPU", {"triton": "3.7.1"}, ()), mine)
    with pytest.raises(UsageError, match=r"mine\.json: is for sm_80, expected one of sm_90"):
        build(tmp_path / "none", tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == [mine]


class Fails(NothingCompiled):
    """Fails with a file half written."""

    def __init__(self, job: CompileJob) -> None:
        super().__init__(job)
        (job.folder / "half").write_text("written")

    def compile(self, program: TracedProgram) -> None:
        raise BuildError(f"the compiler broke on {program.name}")


def test_a_failed_build_leaves_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_nothing(monkeypatch, Fails, programs=["unembed_1"])
    with pytest.raises(BuildError, match="the compiler broke on unembed_1"):
        build(checkpoints["hf"], tmp_path / "out", SMALL)
    assert list(tmp_path.iterdir()) == []


# A build that compiles until it is killed, so that the signal always comes while an artifact is half written.
BUILD_THAT_HANGS = """
import signal, sys, time
import pytest
from artifacts import NothingCompiled, compile_nothing
from gptoss_export.cli import main

class Hangs(NothingCompiled):
    def compile(self, program):
        (self.job.folder / "half").write_text("written")
        time.sleep(600)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
compile_nothing(pytest.MonkeyPatch(), Hangs, programs=["unembed_1"])
main(["build", *sys.argv[1:], "--target", "aoti", "--device", "cpu", "--max-context", "64", "--prefill-chunk", "8"])
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_build_leaves_nothing_that_loads(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    command = [sys.executable, "-c", BUILD_THAT_HANGS, checkpoints["hf"], "-o", tmp_path / "out"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, env=env)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".out-*/half")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    left = list(tmp_path.iterdir())
    os.kill(process.pid, stop)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop), err
    assert len(left) == 1 and not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == (left if stop == signal.SIGKILL else [])
    if stop == signal.SIGKILL:
        with pytest.raises(ArtifactError, match="a killed build left this folder behind"):
            load(left[0])
        compile_nothing(monkeypatch, Fails, programs=["unembed_1"])
        with pytest.raises(BuildError):  # the next build removes it, of another name and whether it fails or not
            build(checkpoints["hf"], tmp_path / "next", SMALL)
        assert list(tmp_path.iterdir()) == []
