"""The artifact of the tiny model: what is in it, and what refuses to read it. Engines are built, none is run."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest
import torch
from tensorrt_helpers import ARCH, exported_function, floats, lowered

from gptoss_export import BuildOptions, build
from gptoss_export.artifact.calls import Signature
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import ArtifactError, LoweringError
from gptoss_export.targets.base_loader import loader
from gptoss_export.targets.tensorrt.build import EngineCompilation
from gptoss_export.targets.tensorrt.edition import installed_edition

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

OPTIONS = BuildOptions("tensorrt", "cuda", arch=ARCH, max_batch=2, widths=(2,), max_context=600, prefill_chunks=(16,))


@pytest.fixture(scope="module")
def engines(checkpoints, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tensorrt") / "artifact"
    build(checkpoints["hf"], output, OPTIONS)
    return output


def test_artifact(engines, cli):
    manifest = load_manifest(engines)
    assert (manifest.target, manifest.arch) == ("tensorrt", ARCH)
    assert manifest.versions["tensorrt_rtx"].startswith("1.")
    code, out, err = cli("inspect", engines, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["programs"].keys() == manifest.programs.keys() and facts["files"].keys() == manifest.files.keys()
    tables = facts["tables"]
    assert {row["program"] for row in tables["schedule"]} == manifest.programs.keys()
    assert len(tables["engine segments"]) == 4 + 4 + 1 + 1
    for row in tables["engine segments"]:
        assert f"engines/{row['engine']}.engine" in manifest.files
    for row in tables["plugins"]:
        assert {f"plugins/{row['kernel']}{suffix}" for suffix in (".ptx", ".cubin")} <= manifest.files.keys()
    code, out, _ = cli("inspect", engines)
    assert code == 0 and "engine segments" in out and "plugins" in out


def test_builds_are_alike(engines, checkpoints, tmp_path):
    """The schedule and the kernels are; TensorRT may put marks of its own into engines."""
    again = tmp_path / "again"
    build(checkpoints["hf"], again, OPTIONS)
    assert (again / "schedule.json").read_text() == (engines / "schedule.json").read_text()
    for path in (engines / "plugins").iterdir():
        assert (again / "plugins" / path.name).read_bytes() == path.read_bytes()


def test_refused_before_an_engine_is_opened(engines, tmp_path):
    """`problems` reads the schedule: a folder without engines and plugins has no other problems than the whole one."""
    manifest, target = load_manifest(engines), loader("tensorrt")
    copy(engines / "schedule.json", tmp_path)
    assert target.problems(manifest, tmp_path) == target.problems(manifest, engines)

    def problems(**changes):
        return "\n".join(target.problems(dataclasses.replace(manifest, **changes), tmp_path))

    assert "schedule.json" not in problems()
    versions = manifest.versions
    assert "artifact built with 1.7.1" in problems(versions=versions | {"tensorrt_rtx": "1.7.1"})
    full = {name: version for name, version in versions.items() if name != "tensorrt_rtx"}
    assert "tensorrt: artifact built with 11.4" in problems(versions=full | {"tensorrt": "11.4"})
    assert "names no TensorRT" in problems(versions=full)
    decode_is_gone = {name: signature for name, signature in manifest.programs.items() if name != "decode_2"}
    assert "programs: decode_2 is missing from the manifest" in problems(programs=decode_is_gone)
    assert ARCH in problems()  # this machine has another GPU, or none


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(engines, cli, checkpoints, tmp_path):
    code, _, err = cli("run", engines, "--tokens", "1,2,3")
    assert code == 2 and "artifact is for a CUDA GPU (sm_89), torch finds none here" in err
    command = ["build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda"]
    code, _, err = cli(*command, "--arch", "sm_90")
    assert code == 2 and "--arch sm_90: tensorrt compiles here for sm_80, sm_86, sm_89, sm_120" in err
    code, _, err = cli(*command)
    assert code == 2 and "--arch: this machine has no cuda device to build for; choose one of sm_80" in err
    assert not (tmp_path / "a").exists()


def test_a_broken_schedule_is_refused(engines, tmp_path):
    """By whatever reads it. What else may be wrong with one is in test_tensorrt_schedule.py."""
    manifest, target = load_manifest(engines), loader("tensorrt")
    data = json.loads((engines / "schedule.json").read_text())
    data["programs"]["decode_2"]["steps"][0]["engine"] = "ghost"
    (tmp_path / "schedule.json").write_text(json.dumps(data))
    assert "unknown engine 'ghost'" in "\n".join(target.problems(manifest, tmp_path))
    with pytest.raises(ArtifactError, match="unknown engine 'ghost'"):
        target.tables(manifest, tmp_path)
    for suffix in "schedule.json", ".engine", ".cubin":
        left = {name: spec for name, spec in manifest.files.items() if not name.endswith(suffix)}
        (gone, *_) = manifest.files.keys() - left.keys()
        fewer = dataclasses.replace(manifest, files=left)
        assert f"{gone}: not among the manifest's files" in "\n".join(target.problems(fewer, engines))
        with pytest.raises(ArtifactError, match=f"{re.escape(gone)}: not among the manifest's files"):
            target.tables(fewer, engines)


def test_lifted_constants_are_refused(tmp_path):
    """Tracing makes an input of a tensor made of numbers, which nobody would bind."""
    program, _ = next(lowered())
    exported = exported_function(lambda x: x + torch.tensor([1.0, 2.0]), (floats(3, 2),))
    signature = Signature(program.signature.inputs[:1], program.signature.outputs)
    lifted = dataclasses.replace(program, exported=exported, signature=signature)
    compilation = EngineCompilation(installed_edition(), ARCH, False, tmp_path, None, None, "{}")
    with pytest.raises(LoweringError, match=r"the graph has 2 inputs, the call 1: .*lifted_tensor"):
        compilation.compile(lifted)


RUN_WITHOUT_THE_BUILDING_HALF = """
import sys
for name in ("triton", "transformers", "click", "rich", "gptoss_plugins", "tokenizers"):
    sys.modules[name] = None  # as if it were not installed
import gptoss_export
assert gptoss_export.load(sys.argv[1]).generate([1, 2, 3], 5, stop_tokens=()).tokens
compiling = tuple(f"gptoss_export.{part}" for part in ("compiler", "kernels", "checkpoint", "model.decoder"))
assert not [name for name in sys.modules if name.startswith(("torch._inductor", "torch._dynamo", *compiling))]
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")
def test_on_a_gpu(checkpoints, cli, tmp_path):
    """Built for this machine's GPU: equal to transformers, and running where Triton cannot be imported."""
    options = ["--max-batch", 3, "--max-context", 4400, "--prefill-chunk", 16, "--prefill-chunk", 64]
    code, _, err = cli(
        "build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda", *options
    )
    assert code == 0, err
    code, out, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err
    command = [sys.executable, "-c", RUN_WITHOUT_THE_BUILDING_HALF, tmp_path / "a"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_loading_imports_nothing_that_builds():
    """The modules that running needs, imported where no package of the building half is."""
    code = """
import sys
for name in ("triton", "transformers", "click", "rich", "gptoss_plugins"):
    sys.modules[name] = None  # as if it were not installed
import gptoss_export.targets.tensorrt.load
parts = ("compiler", "kernels", "checkpoint", "targets.base_compiler", "targets.tensorrt.build", "model.decoder")
print([name for name in sys.modules if name.startswith(tuple(f"gptoss_export.{part}" for part in parts))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
