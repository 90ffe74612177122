"""What the target refuses, at build and at load, and how it says what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx_helpers import KINDS, cpu_artifacts, ort

from gptoss_export import load, verify
from gptoss_export.artifact.files import describe_file
from gptoss_export.artifact.manifest import load_manifest, save_manifest
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers, write_synthetic
from gptoss_export.errors import ArtifactError
from gptoss_export.targets.base_compiler import compiler
from gptoss_export.targets.base_loader import loader
from gptoss_export.targets.onnx.limits import size_problems
from gptoss_export.targets.onnx.model_cpu import load_model
from gptoss_export.targets.onnx.options import Options, read_options
from gptoss_export.targets.onnx.requirements import import_problem
from gptoss_export.targets.onnx.session import differences, open_session


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
    manifest, path = load_manifest(artifacts["default"]), tmp_path / "a" / "model.onnx"
    shutil.copytree(artifacts["default"], tmp_path / "a")
    model = onnx.load(path, load_external_data=False)

    def refused(data: bytes, message: str, same_hash: bool = True) -> None:
        path.write_bytes(data)
        files = manifest.files | ({"model.onnx": describe_file(path)} if same_hash else {})
        with pytest.raises(ArtifactError, match=message):
            load_model(dataclasses.replace(manifest, files=files), path, Options())

    refused(b"no model", "model.onnx: sha256", same_hash=False)
    refused(b"no model", "is not a model that a build writes")
    refused(b"", "does not say what it was compiled for")
    model.graph.node[0].op_type = "NoOperator"
    refused(model.SerializeToString(), "onnxruntime cannot load it")


def test_a_model_with_other_inputs(artifacts):
    """What the description does not say: the nodes of the model, by what onnxruntime makes of them."""
    manifest, path = load_manifest(artifacts["default"]), artifacts["default"] / "model.onnx"
    session = open_session(path, manifest, ["CPUExecutionProvider"])
    fewer = dataclasses.replace(manifest.model, num_key_value_heads=1)
    larger = dataclasses.replace(manifest.model, vocab_size=520)
    shorter = dataclasses.replace(manifest.model, num_hidden_layers=2)
    for changes, message in (
        ({"model": fewer}, r"inputs past_key_values.* found .* 2, .*, expected .* 1, "),
        ({"model": larger}, r"outputs logits: found .*512.*, expected .*520"),
        ({"model": shorter}, r"inputs past_key_values.2.key, .*, expected None"),
        ({"dtype": "bfloat16"}, r"found .*tensor.float.*, expected .*tensor.bfloat16"),
    ):
        found = "\n".join(differences(session, dataclasses.replace(manifest, **changes)))
        assert re.search(message, found), found
    assert list(differences(session, manifest)) == []


def test_programs_are_asked_for_where_they_are_needed(artifacts, tmp_path):
    """An artifact whose manifest names another target."""
    manifest = load_manifest(artifacts["default"])
    save_manifest(dataclasses.replace(manifest, target="aoti", archs=("x86_64-DEFAULT",)), tmp_path)
    with pytest.raises(ArtifactError, match="programs: decode_2 is missing from the manifest"):
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
    assert "torch: not installed, expected 2.11, " in done.stderr
    assert run("run", artifacts["default"], "--tokens", "1,2,3", "--max-new-tokens", "2").returncode == 0


CPU, PORTABLE, CUDA = ("cpu", False), ("cpu", True), ("cuda", False)
SIZES = [
    ({"head_dim": 24}, CPU, "head_dim: found 24, expected a multiple of 16 .*; build with --portable, which"),
    ({"head_dim": 8}, CPU, "head_dim: found 8, expected a multiple of 16"),
    ({"head_dim": 24}, CUDA, "head_dim: found 24, expected a multiple of 16 .*; build with --device cpu --portable"),
    ({"head_dim": 272}, CUDA, "head_dim: found 272, expected at most 256"),
    ({"num_attention_heads": 1026}, CUDA, "num_attention_heads: found 1026, expected at most 1024"),
    ({"hidden_size": 160}, CUDA, "hidden_size: found 160, expected a multiple of 64 .*QMoE; build with --device cpu"),
    ({"intermediate_size": 96}, CUDA, "intermediate_size: found 96, expected a multiple of 64"),
]
FITTING = {"hidden_size": 128, "intermediate_size": 192}
ODD = {"vocab_size": 517, "num_local_experts": 5, "num_experts_per_tok": 5, "sliding_window": 1}


@pytest.mark.parametrize(("changes", "kind", "message"), SIZES)
def test_sizes_that_the_ops_of_onnxruntime_do_not_take(changes, kind, message):
    device, portable = kind
    config = dataclasses.replace(PRESETS["tiny"], **FITTING | changes)
    (problem,) = size_problems(config, device, portable)
    assert re.match(message, problem), problem


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        (FITTING | ODD, CUDA),
        (FITTING | {"head_dim": 256, "num_attention_heads": 1024}, CUDA),
        (ODD | {"head_dim": 272, "num_attention_heads": 1026, "hidden_size": 96}, CPU),
        (ODD | {"head_dim": 24}, PORTABLE),
    ],
)
def test_other_sizes_are_taken(changes, kind):
    assert size_problems(dataclasses.replace(PRESETS["tiny"], **changes), *kind) == []


def test_odd_sizes(tmp_path, cli):
    """Refused before any work; the portable model of the same checkpoint runs."""
    config = dataclasses.replace(with_layers(PRESETS["tiny"], 2), **ODD | {"head_dim": 24})
    write_synthetic(tmp_path / "checkpoint", config, LAYOUTS["hf"], 7, torch.device("cpu"))
    command = ["build", tmp_path / "checkpoint", "--target", "onnx", "--device", "cpu", "--max-context", "64"]
    code, _, err = cli(*command, "-o", tmp_path / "a")
    assert code == 2
    assert "--target onnx does not compile for cpu" in " ".join(err.split())
    assert "head_dim: found 24, expected a multiple of 16" in " ".join(err.split())
    assert not (tmp_path / "a").exists()
    code, _, err = cli(*command, "--portable", "-o", tmp_path / "a")
    assert code == 0, err
    assert verify(tmp_path / "a", tmp_path / "checkpoint", "reference", [1, 33]).passed
