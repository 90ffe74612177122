"""`verify`: passes on what is right, in all layouts and dtypes, and fails on what is not."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from conftest import SEED, compile_artifact
from gptoss_export.build import BuildOptions, build
from gptoss_export.checkpoint.synthetic import PRESETS, layout_for, with_layers, write_random
from gptoss_export.errors import UsageError
from gptoss_export.artifact.manifest import Part, describe_file, load_manifest, save_manifest
from gptoss_export.verify.metric import TOLERANCES
from gptoss_export.verify.oracles import Routing
from gptoss_export.verify.parity import NEAR_TIE, Case, _Bar, _compare, _near_tie, default_lengths, verify

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


def _routing(margin, chosen=None):
    return Routing(margin, torch.zeros(len(margin), dtype=torch.int64) if chosen is None else chosen)


def test_near_ties_are_what_rounding_turns_over():
    exact = torch.linspace(0, 1, 200)
    assert _near_tie(_routing(exact), _routing(exact)) == NEAR_TIE  # logits in bfloat16 are that far apart in any case
    assert _near_tie(_routing(exact), _routing(exact + 0.1)) == pytest.approx(0.1)
    one_moved = exact.clone()
    one_moved[7] = 5.0
    assert _near_tie(_routing(exact), _routing(one_moved)) == NEAR_TIE
    infinite = _routing(torch.full((3,), torch.inf))
    assert _near_tie(infinite, infinite) == 0.0  # all experts are chosen


def test_a_choice_that_turned_says_nothing_of_rounding():
    """Its margin is that of another pair of experts; and with no choice left that did not, all are near ties."""
    exact, moved, chosen = torch.linspace(0, 1, 200), torch.linspace(0, 1, 200), torch.zeros(200, dtype=torch.int64)
    moved[:50] += 0.7
    assert _near_tie(_routing(exact), _routing(moved)) == pytest.approx(0.7)
    chosen[:50] = 1
    assert _near_tie(_routing(exact), _routing(moved, chosen)) == NEAR_TIE
    assert _near_tie(_routing(exact), _routing(moved, torch.ones_like(chosen))) == float("inf")


def test_routing_tells_experts_apart_by_layer():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    layer = Routing.of_layer(logits, torch.tensor([[0, 1], [1, 0], [0, 2], [2, 3]]))
    assert layer.margin.tolist() == [1.0] * 4
    same, other = layer.chosen[0] == layer.chosen[1], layer.chosen[[0, 2, 3]]
    assert same and len(set(other.tolist())) == 3
    swapped = Routing.of_layer(2 * logits, torch.tensor([[0, 2], [1, 0], [0, 1], [2, 3]]))
    one, two = Routing.through([layer, swapped]), Routing.through([swapped, layer])
    assert one.margin.tolist() == [1.0] * 4  # the least
    assert (one.chosen == two.chosen).tolist() == [False, True, False, True]  # the same experts, in other layers
    assert Routing.joined([one, two]).chosen.tolist() == [*one.chosen.tolist(), *two.chosen.tolist()]


@pytest.mark.parametrize("name", ["transformers", "reference"])
def test_oracles_tell_their_routing(checkpoints, name):
    from gptoss_export.verify.oracles import open_oracle

    def routing(dtype):
        oracle = open_oracle(name, checkpoints["hf"], dtype, torch.device("cpu"))
        oracle.logits(list(range(140)), [0])
        first = oracle.routing()
        oracle.logits(list(range(140)), [0])  # a pass begins anew
        assert torch.equal(oracle.routing().chosen, first.chosen)
        return first

    exact, rounded = routing(torch.float32), routing(torch.bfloat16)
    assert exact.margin.shape == exact.chosen.shape == (140,) and exact.chosen.dtype == torch.int64
    same = exact.chosen == rounded.chosen
    assert same.any() and not same.all()  # rounding turns some
    assert exact.margin[~same].mean() < exact.margin[same].mean()


def _bar(clear):
    """Ten rows; the oracle errs by 0.1 where the row is clear, by 0.4 where it is not."""
    expected = {row: torch.ones(8) for row in range(10)}
    rounded = {row: torch.full((8,), 1.1 if clear[row] else 1.4) for row in range(10)}
    return _Bar(TOLERANCES[torch.bfloat16], expected, rounded, clear, list(range(10)))


def _judged(bar, rows, off, many=False):
    return _compare(Case("test", (1,)), rows, torch.full((len(rows), 8), 1 + off), bar, many, None)


def test_a_case_without_a_clear_row_is_held_to_all_rows_of_the_oracle():
    bar = _bar([row < 8 for row in range(10)])
    assert bar.piece.max == pytest.approx(0.125, rel=1e-3)
    unclear = _judged(bar, [8, 9], 0.2)
    assert unclear.near_ties == 2 and unclear.bound == bar.unclear
    assert unclear.bound.max == pytest.approx(0.5, rel=1e-3)
    assert unclear.bound.rms == pytest.approx(1.25 * ((8 * 0.1**2 + 2 * 0.4**2) / 10) ** 0.5, rel=1e-3)
    assert unclear.passed and not _judged(bar, [8, 9], 0.3).passed
    assert not _judged(bar, [7, 8], 0.2).passed  # which has one
    every = _bar([False] * 10)
    assert every.whole == every.piece == every.unclear
    assert _judged(every, [1], 0.45, many=True).passed


def test_the_longest_prompt_is_told_by_the_case():
    """Another case may compare as many rows."""
    bar = _bar([row < 8 for row in range(10)])
    rows = list(range(10))
    assert _judged(bar, rows, 0.0).bound == bar.piece and _judged(bar, rows, 0.0, many=True).bound == bar.whole
    assert bar.piece.rms < bar.whole.rms


def test_lengths_cover_the_borders_of_both():
    model = PRESETS["tiny"]
    one, two = (SimpleNamespace(model=model, prefill_chunks=chunks) for chunks in ((16, 64), (100,)))
    assert {63, 64, 65, 99, 100, 101, 131, 132, 133} <= set(default_lengths([one, two], 4000))
    assert {99, 100, 101} & set(default_lengths([one], 4000)) == set()


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
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    other = tmp_path / "other"  # of another target, and built in no time
    build(checkpoints["hf"], other, BuildOptions("onnx", "cpu", **SMALL))
    report = verify(artifact, checkpoints["hf"], "transformers", None, beside=other)
    assert report.passed and max(int(row.label) for row in report.rows if row.label.isdigit()) <= 248
    assert all(row.beside.judged.max < 1e-4 and row.beside.difference.max < 2e-4 for row in report.rows)
    code, out, err = cli("verify", artifact, "--checkpoint", checkpoints["hf"], "--lengths", "5", "--beside", other)
    assert code == 0 and "same top-1" in out, err
    wrong = _with_final_norm(artifact, tmp_path / "wrong", 2.0)
    report = verify(artifact, checkpoints["hf"], "transformers", [40], beside=wrong)
    assert not report.passed and all(row.judged.within(row.bound) for row in report.rows)
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    save_manifest(dataclasses.replace(load_manifest(other), dtype="bfloat16"), rounded)
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
