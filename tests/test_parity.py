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
from gptoss_export.manifest import Part, describe_file, load_manifest, save_manifest
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


def test_near_ties_are_what_rounding_turns_over():
    from gptoss_export.parity import NEAR_TIE, _near_tie

    exact = torch.linspace(0, 1, 200)
    assert _near_tie(exact, exact) == NEAR_TIE  # logits in bfloat16 are that far apart in any case
    assert _near_tie(exact, exact + 0.1) == pytest.approx(0.1)
    one_moved = exact.clone()
    one_moved[7] = 5.0
    assert _near_tie(exact, one_moved) == NEAR_TIE
    assert _near_tie(torch.full((3,), torch.inf), torch.full((3,), torch.inf)) == 0.0  # all experts are chosen


def test_reference_oracle_agrees(artifact, checkpoints):
    report = verify(artifact, checkpoints["hf"], "reference", [1, 33, 130])
    assert report.passed and [row.label for row in report.rows][:3] == ["1", "33", "130"]


def _with_final_norm(artifact, folder, value):
    """A copy of the artifact whose final norm has this weight everywhere."""
    shutil.copytree(artifact, folder)
    manifest = load_manifest(folder)
    norm = manifest.weights["model.norm.weight"]
    save_file({"norm": torch.full(norm.shape, value)}, folder / "norm.safetensors")
    weights = manifest.weights | {"model.norm.weight": dataclasses.replace(norm, parts=(Part("norm.safetensors", "norm"),))}
    files = manifest.files | {"norm.safetensors": describe_file(folder / "norm.safetensors")}
    save_manifest(dataclasses.replace(manifest, weights=weights, files=files), folder)
    return folder


def test_beside_another_artifact(artifact, checkpoints, tmp_path, cli):
    """Both are judged, at lengths that both can run, and held against each other."""
    other = compile_artifact(checkpoints["hf"], tmp_path / "other", **SMALL)
    report = verify(artifact, checkpoints["hf"], "transformers", None, beside=other)
    assert report.passed and max(int(row.label) for row in report.rows if row.label.isdigit()) <= 248
    assert all(row.beside.judged.max < 1e-4 and row.beside.difference.max < 2e-4 for row in report.rows)
    code, out, err = cli("verify", artifact, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--beside", other)
    assert code == 0 and "same top-1" in out, err
    wrong = _with_final_norm(other, tmp_path / "wrong", 2.0)
    report = verify(artifact, checkpoints["hf"], "transformers", [40], beside=wrong)
    assert not report.passed and all(row.judged.within(row.bound) for row in report.rows)
    rounded = compile_artifact(checkpoints["hf"], tmp_path / "rounded", dtype="bfloat16", **SMALL)
    code, _, err = cli("verify", artifact, "--checkpoint", checkpoints["hf"], "--beside", rounded)
    assert code == 2 and "is bfloat16 for cpu, expected float32 for cpu" in err


def test_another_checkpoint_fails(artifact, checkpoints, tmp_path, cli):
    other = tmp_path / "other"
    write_random(other, PRESETS["tiny"], layout_for("hf", "mxfp4"), SEED + 1, torch.device("cpu"))
    assert not verify(artifact, other, "transformers", [40]).passed
    code, out, _ = cli("verify", artifact, "--checkpoint", other, "--lengths", "40", "--json")
    assert code == 1 and json.loads(out)["passed"] is False


def test_a_broken_artifact_fails_in_json_too(artifact, checkpoints, tmp_path, cli):
    """Weights that are not numbers: every error is NaN, which passes nothing and is null in JSON."""
    folder = _with_final_norm(artifact, tmp_path / "broken", float("nan"))
    code, out, _ = cli("verify", folder, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--json")
    assert code == 1 and json.loads(out)["rows"][0]["error"]["max"] is None


def test_a_checkpoint_of_another_shape(artifact, tmp_path):
    write_random(tmp_path / "other", with_layers(PRESETS["tiny"], 2), layout_for("hf", "mxfp4"), 0, torch.device("cpu"))
    with pytest.raises(UsageError, match="num_hidden_layers: the checkpoint has 2, the artifact 4"):
        verify(artifact, tmp_path / "other", "transformers", None)


def test_lengths_that_do_not_fit(artifact, checkpoints):
    with pytest.raises(UsageError, match="(?s)0: expected 1 to 4392.*4393: expected"):
        verify(artifact, checkpoints["hf"], "transformers", [0, 5, 4393])
