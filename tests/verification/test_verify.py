"""`verify` passes compiled artifacts that are right, of all layouts and dtypes, and fails those that are not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from artifacts import SEED, TWO_LAYERS, compile_artifact
from gptoss_export import BuildOptions, build, verify
from gptoss_export.artifact.files import describe_file
from gptoss_export.artifact.manifest import Part, load_manifest, save_manifest
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, with_layers, write_synthetic
from gptoss_export.errors import UsageError
from gptoss_export.model.parameters import parameters

SMALL = {"max_batch": 2, "widths": (2,), "max_context": 256, "prefill_chunks": (64,)}
Checkpoints = dict[str, Path]
Cli = Callable[..., tuple[int, str, str]]


def test_float32_at_every_border(artifact: Path, checkpoints: Checkpoints) -> None:
    report = verify(artifact, checkpoints["hf"])
    labels = [row.label for row in report.rows]
    assert {"1", "31", "32", "33", "63", "64", "65", "95", "96", "97", "4095", "4096", "4097"} <= set(labels)
    assert labels[-1].startswith("batch 4097")
    assert report.passed, report.rows
    assert all(row.top1 == 1.0 and row.all.max < 1e-4 for row in report.rows)


@pytest.mark.parametrize("layout", ["original", "hf-bf16"])
def test_other_layouts(artifact: Path, checkpoints: Checkpoints, layout: str) -> None:
    """transformers reads the same model in another layout. building/test_write_weights.py compares the weights."""
    report = verify(artifact, checkpoints[layout], lengths=[1, 33, 130])
    assert report.passed and all(row.all.max < 1e-4 for row in report.rows)


def test_bfloat16_deviates_no_more_than_transformers_does(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_synthetic(checkpoint, TWO_LAYERS, layout_for("hf", "mxfp4"), SEED, torch.device("cpu"))
    artifact = compile_artifact(checkpoint, tmp_path / "artifact", dtype="bfloat16", **SMALL)
    report = verify(artifact, checkpoint)
    assert report.passed, report.rows
    assert all(row.oracle is not None and row.all.rms < row.oracle.rms for row in report.rows)


def test_reference_oracle_agrees(artifact: Path, checkpoints: Checkpoints) -> None:
    report = verify(artifact, checkpoints["hf"], "reference", [1, 33, 130])
    assert report.passed and [row.label for row in report.rows][:3] == ["1", "33", "130"]


def with_final_norm(artifact: Path, folder: Path, value: float) -> Path:
    """A copy of the artifact whose final norm has this weight everywhere."""
    shutil.copytree(artifact, folder)
    manifest = load_manifest(folder)
    norm = manifest.weights["model.norm.weight"]
    save_file({"norm": torch.full(norm.shape, value)}, folder / "norm.safetensors")
    changed = dataclasses.replace(norm, parts=(Part("norm.safetensors", "norm"),))
    weights = manifest.weights | {"model.norm.weight": changed}
    files = manifest.files | {"norm.safetensors": describe_file(folder / "norm.safetensors")}
    save_manifest(dataclasses.replace(manifest, weights=weights, files=files), folder)
    return folder


def with_dtype(artifact: Path, folder: Path, dtype: str) -> Path:
    """A manifest like the artifact's, without programs, that says it computes in `dtype`."""
    folder.mkdir()
    manifest = load_manifest(artifact)
    expected = {item.name: item for item in parameters(manifest.model, dtype)}
    weights = {name: dataclasses.replace(spec, dtype=expected[name].dtype) for name, spec in manifest.weights.items()}
    save_manifest(dataclasses.replace(manifest, dtype=dtype, weights=weights, programs={}), folder)
    return folder


def test_compare_with_another_artifact(artifact: Path, checkpoints: Checkpoints, tmp_path: Path, cli: Cli) -> None:
    """Both are compared with the oracle, at lengths that both can run, and with each other."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    other = tmp_path / "other"  # of another target, and built in no time
    build(checkpoints["hf"], other, BuildOptions("onnx", "cpu", **SMALL))
    report = verify(artifact, checkpoints["hf"], compare_with=other)
    assert report.passed and max(int(row.label) for row in report.rows if row.label.isdigit()) <= 248
    assert all(row.comparison is not None for row in report.rows)
    assert all(row.comparison.gated.max < 1e-4 and row.comparison.difference.max < 2e-4 for row in report.rows)
    code, out, err = cli(
        "verify", artifact, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--compare-with", other
    )
    assert code == 0 and "same top-1" in out, err
    wrong = with_final_norm(artifact, tmp_path / "wrong", 2.0)
    report = verify(artifact, checkpoints["hf"], lengths=[40], compare_with=wrong)
    assert not report.passed and all(row.gated.within(row.bound) for row in report.rows)
    rounded = with_dtype(other, tmp_path / "rounded", "bfloat16")
    code, _, err = cli("verify", artifact, "--checkpoint", checkpoints["hf"], "--compare-with", rounded)
    assert code == 2 and "is bfloat16 for cpu, expected float32 for cpu" in err


def test_another_checkpoint_fails(artifact: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other"
    write_synthetic(other, PRESETS["tiny"], layout_for("hf", "mxfp4"), SEED + 1, torch.device("cpu"))
    assert not verify(artifact, other, lengths=[40]).passed
    code, out, _ = cli("verify", artifact, "--checkpoint", other, "--lengths", "40", "--json")
    assert code == 1 and json.loads(out)["passed"] is False


def test_a_broken_artifact_fails_in_json_too(
    artifact: Path, checkpoints: Checkpoints, tmp_path: Path, cli: Cli
) -> None:
    """Weights that are not numbers: every deviation is NaN, which passes nothing and is null in JSON."""
    folder = with_final_norm(artifact, tmp_path / "broken", float("nan"))
    code, out, _ = cli("verify", folder, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--json")
    assert code == 1 and json.loads(out)["rows"][0]["all"]["max"] is None


def test_a_checkpoint_of_another_shape(artifact: Path, tmp_path: Path) -> None:
    shorter = with_layers(PRESETS["tiny"], 2)
    write_synthetic(tmp_path / "other", shorter, layout_for("hf", "mxfp4"), 0, torch.device("cpu"))
    with pytest.raises(UsageError, match="num_hidden_layers: the checkpoint has 2, the artifact 4"):
        verify(artifact, tmp_path / "other")


def test_lengths_that_do_not_fit(artifact: Path, checkpoints: Checkpoints) -> None:
    with pytest.raises(UsageError, match=r"(?s)0: expected 1 to 4392.*4393: expected"):
        verify(artifact, checkpoints["hf"], lengths=[0, 5, 4393])
