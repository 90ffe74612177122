"""`gptoss-export verify`: its exit code and its report, with this project's own model as the oracle."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import invoke

from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic

OPTIONS = ("--oracle", "reference", "--lengths", "20")


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("other") / "checkpoint"
    write_synthetic(folder, PRESETS["tiny"], LAYOUTS["hf"], 99, torch.device("cpu"))
    return folder


def test_pass_and_comparison(artifact: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = invoke(
        *("verify", artifact, "--checkpoint", checkpoints["hf"], *OPTIONS, "--compare-with", artifact),
        *("--html", page, "--json"),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and report["oracle"] == "reference" and report["compare_with"] == str(artifact)
    assert report["rows"][0]["label"] == "20"
    for row in report["rows"]:
        assert row["passed"] and row["top1"] == 1
        assert row["gated"]["max"] <= row["bound"]["max"] and row["gated"]["rms"] <= row["bound"]["rms"]
        assert row["comparison"]["difference"]["max"] == 0 and row["comparison"]["top1"] == 1
    assert "pass" in page.read_text() and "difference max" in page.read_text()


def test_exit_code_1_where_the_logits_differ(artifact: Path, other_weights: Path) -> None:
    done = invoke("verify", artifact, "--checkpoint", other_weights, *OPTIONS)
    assert done.exit_code == 1, done.stderr
    assert "FAIL" in done.stdout and "pass" not in done.stdout
    assert "Traceback" not in done.stderr
