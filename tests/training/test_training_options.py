"""`build --program train-step`: its options, what they become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import invoke

from artifacts import SEED, compile_nothing
from gptoss_export import BuildOptions, build
from gptoss_export.artifact.manifest import load_manifest, rebuild_command
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, with_layers, write_synthetic
from gptoss_export.errors import UsageError
from gptoss_export.model.training.lora import TARGETS, Training, factors
from gptoss_export.training_options import TrainOptions


def test_options_become_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_nothing(monkeypatch)
    write_synthetic(tmp_path / "c", with_layers(PRESETS["tiny"], 1), LAYOUTS["hf"], SEED, torch.device("cpu"))
    given = "--train-tokens 64 --lora-rank 3 --lora-alpha 5 --lora-target down_proj --lora-target q_proj --recompute"
    arguments = ["build", tmp_path / "c", "-o", tmp_path / "a", "--target", "aoti", "--device", "cpu", "--jobs", "1"]
    result = invoke(*arguments, "--program", "train-step", *given.split())
    assert result.exit_code == 0, result.output
    manifest = load_manifest(tmp_path / "a")
    training = Training(64, 3, 5.0, ("q_proj", "down_proj"), True)
    assert manifest.sizes.training == training
    assert list(manifest.programs) == ["train_step"]
    signature = manifest.programs["train_step"]
    names = [item.name for item in factors(manifest.model, training)]
    assert [item.name for item in signature.inputs[:3]] == ["tokens", "targets", "positions"]
    assert [item.name for item in signature.inputs[3 : 3 + len(names)]] == names
    assert [item.name for item in signature.outputs] == ["loss", *(f"{name}.gradient" for name in names)]
    command = rebuild_command(manifest.to_json(), tmp_path / "a")
    assert "--program train-step --train-tokens 64 --lora-rank 3" in command
    assert "--lora-target q_proj --lora-target down_proj --recompute" in command
    assert "--max-batch" not in command
    shown = invoke("inspect", tmp_path / "a")
    assert "64 tokens, LoRA of rank 3 on q_proj, down_proj" in shown.output
    assert invoke("inspect", tmp_path / "a", "--html", tmp_path / "page.html").exit_code == 0
    assert "training step" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"train": TrainOptions(tokens=0)}, ["--train-tokens 0: expected a whole number from 1 to 1048576"]),
        (
            {"train": TrainOptions(lora_rank=300, lora_alpha=-1)},
            ["--lora-rank 300: expected a whole number from 1 to 256", "--lora-alpha -1: expected a number above 0"],
        ),
        (
            {"train": TrainOptions(lora_targets=("q_proj", "router"))},
            [f"--lora-target 'router': expected one of {', '.join(TARGETS)}"],
        ),
        ({"train": TrainOptions(lora_targets=())}, ["--lora-target (): expected some of"]),
        (
            {"train": TrainOptions(), "max_batch": 4, "tensor_parallel": 2, "stop_tokens": (1,)},
            ["--max-batch: is for artifacts that generate", "--tensor-parallel: is for", "--stop-token: is for"],
        ),
        ({"train": TrainOptions(tokens=2**18)}, ["--train-tokens 262144: expected at most 131072 (max_position"]),
    ],
    ids=["tokens", "rank and alpha", "target", "no target", "of generation", "context"],
)
def test_options_that_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, options: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        build(checkpoints["hf"], tmp_path / "a", BuildOptions("aoti", "cpu", **options))
    assert all(problem in str(caught.value) for problem in problems), caught.value
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_targets_without_training(checkpoints: dict[str, Path], tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match=f"--program train-step: target {target} compiles no training step; choose"):
        build(checkpoints["hf"], tmp_path / "a", BuildOptions(target, train=TrainOptions()))


def test_options_of_training_without_it(tmp_path: Path) -> None:
    result = invoke("build", tmp_path, "-o", tmp_path / "a", "--lora-rank", 4, "--recompute")
    assert result.exit_code == 2
    assert "--lora-rank: is for --program train-step" in result.output
    assert "--recompute: is for --program train-step" in result.output
