"""--html of `inspect`, `verify` and `bench`: checked before anything long, and the same numbers as the terminal's."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from cli_helpers import invoke
from parsed_page import parsed

from gptoss_export.artifact.manifest import load_manifest

COMMANDS = {
    "inspect": ["inspect", "{missing}"],
    "verify": ["verify", "{missing}", "--checkpoint", "{missing}"],
    "bench": ["bench", "{missing}"],
}


def arguments(command: str, folder: Path) -> list[str]:
    return [word.format(missing=folder / "missing") for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_library_is_one_error_before_anything_else(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "matplotlib" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    page = tmp_path / "page.html"
    done = invoke(*arguments(command, tmp_path), "--html", page)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --html {page}: matplotlib, which draws the pictures, is not installed; "
        "run: pip install 'gptoss-export[pictures]'\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert "matplotlib" not in invoke(*arguments(command, tmp_path)).stderr  # without the option nobody needs it


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_that_cannot_be_made_is_one_error_before_anything_else(command: str, tmp_path: Path) -> None:
    (tmp_path / "missing").mkdir()
    for page, message in (
        (tmp_path / "no folder" / "page.html", "expected a file in a folder that exists"),
        (tmp_path, "found a folder, expected a file"),
        (tmp_path / "missing" / "page.html", "which the command reads; name a file outside of it"),
    ):
        done = invoke(*arguments(command, tmp_path), "--html", page)
        assert (done.exit_code, done.stdout) == (2, "") and f"--html {page}: " in done.stderr
        assert message in done.stderr


def test_inspect(uncompiled: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = invoke("inspect", uncompiled, "--html", file)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"written: {file}\n"
    page, manifest = parsed(file), load_manifest(uncompiled)
    assert {*manifest.programs, *manifest.files, "max_context", "4400"} <= page.cells
    assert len(page.pictures) == 2 * 3
    only = tmp_path / "only.html"
    shown = invoke("inspect", uncompiled, "--html", only, "--json")
    assert json.loads(shown.stdout)["target"] == manifest.target and shown.stderr == f"written: {only}\n"
    assert parsed(only).cells == page.cells


def test_verify(artifact: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    options = ("--oracle", "reference", "--lengths", "20", "--compare-with", artifact, "--html", file, "--json")
    done = invoke("verify", artifact, "--checkpoint", checkpoints["hf"], *options)
    assert done.exit_code == 0, done.stderr
    report, page = json.loads(done.stdout), parsed(file)
    for row in report["rows"]:
        numbers = [row["gated"]["max"], row["gated"]["rms"], row["bound"]["max"], row["kl"]]
        assert {row["label"], *(f"{number:.1e}" for number in numbers)} <= page.cells
    (sampled,) = (row for row in report["rows"] if row["sampled"])
    assert [span["first"] for span in sampled["spans"]] == list(range(28))
    assert {f"{span['error']['max']:.1e}" for span in sampled["spans"]} <= page.cells
    assert len(report["margins"]) == 101 and {f"{margin:.2e}" for margin in report["margins"]} <= page.cells
    assert {"pass"} <= set(page.text) and len(page.pictures) == 2 * 4


def test_bench(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = invoke("bench", artifact, "--batch", "1,2,3", "--context", "24", "--html", file, "--json")
    assert done.exit_code == 0, done.stderr
    report, page = json.loads(done.stdout), parsed(file)
    for row in report["measurements"]:
        assert {
            f"{row['decode_step_s'] * 1e3:.3f}",
            f"{row['decode_tok_s']:,.1f}",
            f"{row['floor_s'] * 1e3:.3f}",
        } <= page.cells
    assert report["startup_s"].keys() <= page.cells
    assert len(page.pictures) == 2 * 4
    assert done.stderr.endswith(f"written: {file}\n")
