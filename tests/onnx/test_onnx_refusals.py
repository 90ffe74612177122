"""What the target refuses, at build and at load, and how it says what is missing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_helpers import KINDS, cpu_artifacts, ort

from gptoss_export import load
from gptoss_export.artifact.manifest import load_manifest, save_manifest
from gptoss_export.errors import ArtifactError
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.base_loader import loader
from gptoss_export.targets.onnx.model_cpu import load_model
from gptoss_export.targets.onnx.options import Options, read_options
from gptoss_export.targets.onnx.requirements import import_problem


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_artifact_has_no_problems(artifacts, kind):
    assert loader("onnx").problems(load_manifest(artifacts[kind]), artifacts[kind]) == []


def test_what_a_manifest_says_wrongly(artifacts):
    target, manifest = loader("onnx"), load_manifest(artifacts["default"])

    def problems(**changes: object) -> str:
        return "\n".join(target.problems(dataclasses.replace(manifest, **changes), Path()))

    both = problems(archs=("sm_90",), files={})
    assert "arch: artifact is for sm_90, expected any" in both
    assert "model.onnx is missing from the manifest" in both
    for options in {"portable": 1}, {"portable": None}, {"other": True}, {"portable": True, "other": 1}:
        assert f"target_options: found {options}, expected portable: true or false" in problems(target_options=options)
    assert "found portable on cuda" in problems(device="cuda", target_options={"portable": True})
    assert problems(target_options={}) == ""  # the default


def test_options_are_read():
    assert read_options({"portable": True}) == Options(portable=True)
    assert read_options({}) == Options()
    with pytest.raises(ValueError, match="target_options: found"):
        read_options({"portable": "yes"})


def test_an_old_onnxruntime(artifacts, monkeypatch):
    monkeypatch.setattr(ort, "__version__", "1.23.2")
    manifest = load_manifest(artifacts["default"])
    assert "found 1.23.2, expected 1.24 or later" in str(loader("onnx").problems(manifest, artifacts["default"]))
    available = compiler("onnx").available("cpu")
    assert available.ready  # building needs onnx alone
    assert "; to run it: onnxruntime: found 1.23.2" in available.detail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--target", "onnx", "--device", "cpu", "--arch", "sm_90", "--portable"],
            "--arch sm_90: onnx compiles here for any",
        ),
        (
            ["--target", "onnx", "--device", "cuda", "--portable"],
            "--portable: is for --device cpu, found --device cuda",
        ),
        (["--target", "aoti", "--portable"], "--portable: is an option of target onnx, found --target aoti"),
        (["--target", "onnx", "--device", "cpu", "--dtype", "bfloat16"], "onnx on cpu builds float32"),
    ],
)
def test_options_that_cannot_be_built(checkpoints, tmp_path, cli, options, message):
    code, _, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "a").exists()


def test_a_model_that_is_not_the_manifests(artifacts, tmp_path):
    manifest, path = load_manifest(artifacts["default"]), artifacts["default"] / "model.onnx"
    fewer = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, num_key_value_heads=1))
    with pytest.raises(ArtifactError, match="not the model of the manifest"):
        load_model(fewer, path, Options())
    larger = dataclasses.replace(manifest.model, vocab_size=520)
    longer = dataclasses.replace(manifest.sizes, max_context=9999)
    for changes, options, message in (
        ({"model": larger}, Options(), r"outputs logits: found .*512.*, expected .*520"),
        ({}, Options(portable=True), "portable: found false, expected true"),
        ({"sizes": longer}, Options(), "max_context: found 4352, expected 9999"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_model(dataclasses.replace(manifest, **changes), path, options)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="cannot load it"):
        load_model(manifest, tmp_path / "model.onnx", Options())


def test_programs_are_asked_for_where_they_are_needed(artifacts, tmp_path):
    """An artifact whose manifest names another target."""
    manifest = load_manifest(artifacts["default"])
    save_manifest(dataclasses.replace(manifest, target="aoti", archs=("x86_64-DEFAULT",)), tmp_path)
    with pytest.raises(ArtifactError, match="programs: decode is missing from the manifest"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "broken_package: not installed"),
        ("raise ImportError('libfoo.so: no such file')", "installed, but importing it fails (ImportError: libfoo.so"),
        ("raise AttributeError('no float')", "installed, but importing it fails (AttributeError: no float)"),
        ("import missing_part_of_it", "installed, but importing it fails (No module named 'missing_part_of_it')"),
        ("", None),
    ],
)
def test_a_broken_package_is_not_a_missing_one(tmp_path, monkeypatch, code, message):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_package", raising=False)
    if code is not None:
        (tmp_path / "broken_package.py").write_text(code)
    found = import_problem("broken_package")
    sys.modules.pop("broken_package", None)
    if message is None:
        assert found is None
    else:
        assert found is not None
        assert message in found


BROKEN = """
import sys
from pathlib import Path
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.base_loader import loader
folder = Path(sys.argv[1])
print(compiler("onnx").available("cpu").detail)
print(*loader("onnx").problems(load_manifest(folder), folder))
"""


def test_broken_onnx_and_onnxruntime(artifacts, tmp_path):
    for name in "onnx", "onnxruntime":
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} needs libfoo')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{BROKEN}"
    done = subprocess.run(
        [sys.executable, "-c", code, artifacts["default"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    available, problems = done.stdout.splitlines()
    assert available == "onnx: installed, but importing it fails (ImportError: onnx needs libfoo)"
    assert problems.startswith("onnxruntime: installed, but importing it fails (ImportError: onnxruntime needs libfoo)")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from gptoss_export.cli import main
main(sys.argv[1:])
"""


def test_a_missing_package_is_reported(artifacts, artifact):
    """Without torch no target builds, an artifact that needs it is refused, and an ONNX model for cpu runs."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("targets", "--json")
    assert done.returncode == 0, done.stderr
    details = {row["target"]: row for row in json.loads(done.stdout)["targets"]}
    for name in "aoti", "onnx":
        assert "torch" in details[name]["detail"]
        assert not details[name]["ready"]
    done = run("run", artifact, "--tokens", "1,2")
    assert done.returncode == 2
    assert "target aoti cannot be used: package torch is not installed" in done.stderr
    assert run("run", artifacts["default"], "--tokens", "1,2,3", "--max-new-tokens", "2").returncode == 0
