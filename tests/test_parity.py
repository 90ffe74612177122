"""`verify`: passes on what is right, in all layouts and dtypes, and fails on what is not."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from conftest import SEED, compile_artifact
from gptoss_export.checkpoint.random import PRESETS, layout_for, with_layers, write_random
from gptoss_export.errors import UsageError
from gptoss_export.manifest import describe_file, load_manifest, save_manifest
from gptoss_export.parity import verify

SMALL = {"max_batch": 2, "max_context": 256, "prefill_chunks": (64,)}


def test_float32_at_every_border(artifact, checkpoints):
    report = verify(artifact, checkpoints["hf"], "transformers", None)
    labels = [row.label for row in report.rows]
    assert {"1", "31", "32", "33", "64", "96", "97", "192", "4095", "4096", "4097"} <= set(labels)
    assert labels[-1].startswith("batch 4097")
    assert report.passed, report.rows
    assert all(row.top1 == 1.0 and row.error.max < 1e-4 for row in report.rows)


@pytest.mark.parametrize("layout", ["original", "hf-bf16"])
def test_other_layouts(checkpoints, tmp_path, layout):
    artifact = compile_artifact(checkpoints[layout], tmp_path / "artifact", **SMALL)
    report = verify(artifact, checkpoints[layout], "transformers", None)
    assert report.passed and all(row.error.max < 1e-4 for row in report.rows)


def test_bfloat16_errs_no_more_than_transformers_does(checkpoints, tmp_path):
    artifact = compile_artifact(checkpoints["hf"], tmp_path / "artifact", dtype="bfloat16", **SMALL)
    report = verify(artifact, checkpoints["hf"], "transformers", None)
    assert report.passed, report.rows
    assert all(row.oracle is not None and row.error.rms < row.oracle.rms for row in report.rows)


def test_reference_oracle_agrees(artifact, checkpoints):
    report = verify(artifact, checkpoints["hf"], "reference", [1, 33, 130])
    assert report.passed and [row.label for row in report.rows][:3] == ["1", "33", "130"]


def test_another_checkpoint_fails(artifact, checkpoints, tmp_path, cli):
    other = tmp_path / "other"
    write_random(other, PRESETS["tiny"], layout_for("hf", "mxfp4"), SEED + 1, torch.device("cpu"))
    assert not verify(artifact, other, "transformers", [40]).passed
    code, out, _ = cli("verify", artifact, "--checkpoint", other, "--lengths", "40", "--json")
    assert code == 1 and json.loads(out)["passed"] is False


def test_a_broken_artifact_fails_in_json_too(artifact, checkpoints, tmp_path, cli):
    """Weights that are not numbers: every error is NaN, which passes nothing and is null in JSON."""
    folder = shutil.copytree(artifact, tmp_path / "broken")
    manifest = load_manifest(folder)
    part = manifest.weights["model.norm.weight"].parts[0]
    (folder / part.file).unlink()
    save_file({part.tensor: torch.full((96,), float("nan"))}, folder / part.file)
    files = manifest.files | {part.file: describe_file(folder / part.file)}
    save_manifest(dataclasses.replace(manifest, files=files), folder)
    code, out, _ = cli("verify", folder, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--json")
    assert code == 1 and json.loads(out)["rows"][0]["error"]["max"] is None


def test_a_checkpoint_of_another_shape(artifact, tmp_path):
    write_random(tmp_path / "other", with_layers(PRESETS["tiny"], 2), layout_for("hf", "mxfp4"), 0, torch.device("cpu"))
    with pytest.raises(UsageError, match="num_hidden_layers: the checkpoint has 2, the artifact 4"):
        verify(artifact, tmp_path / "other", "transformers", None)


def test_lengths_that_do_not_fit(artifact, checkpoints):
    with pytest.raises(UsageError, match="(?s)0: expected 1 to 4392.*4393: expected"):
        verify(artifact, checkpoints["hf"], "transformers", [0, 5, 4393])
