"""Fixtures: tiny checkpoints in all layouts, the artifact of one of them, transformers on the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from scripted import scripted_artifact

from artifacts import OPTIONS, SEED, FakeCode, compile_artifact, compile_nothing, made_once
from gptoss_export import BuildOptions, Runner, build, load
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic

if TYPE_CHECKING:
    from transformers import GptOssForCausalLM


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny model in every layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    for layout in LAYOUTS.values():
        write_synthetic(root / layout.name, PRESETS["tiny"], layout, SEED, torch.device("cpu"), tokenizer=True)
    return {name: root / name for name in LAYOUTS}


@pytest.fixture(scope="session")
def artifact(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for CPU in float32: three slots, two chunk sizes, a context past 4,096. Nobody changes it.

    Nothing here takes longer than compiling it. So tests of something else build without compiling, or two layers.
    """

    def make(root: Path) -> None:
        compile_artifact(checkpoints["hf"], root / "float32")

    return made_once(tmp_path_factory, "tiny", make) / "float32"


@pytest.fixture(scope="session")
def uncompiled(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a few bytes in place of code: for everything that is checked before code is loaded."""

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            compile_nothing(patch, FakeCode)
            build(checkpoints["hf"], root / "float32", BuildOptions("aoti", "cpu", **OPTIONS))

    return made_once(tmp_path_factory, "uncompiled", make) / "float32"


@pytest.fixture(scope="session")
def scripted(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that answers every prompt with `Think` and then `scripted.ANSWER`, in the chat format."""
    return made_once(tmp_path_factory, "scripted", lambda root: scripted_artifact(artifact, root / "it")) / "it"


@pytest.fixture(scope="session")
def endless(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose answer never stops."""
    return made_once(tmp_path_factory, "endless", lambda root: scripted_artifact(artifact, root / "it", True)) / "it"


@pytest.fixture(scope="session")
def loaded(artifact: Path) -> Runner:
    return load(artifact)


@pytest.fixture
def runner(loaded: Runner) -> Runner:
    """The loaded artifact with empty slots."""
    loaded.reset()
    return loaded


@pytest.fixture(scope="session")
def transformer(checkpoints: dict[str, Path]) -> GptOssForCausalLM:
    """Hugging Face's model on the same checkpoint, read by Hugging Face, float32, eager attention."""
    from transformers import GptOssForCausalLM, Mxfp4Config

    quantization = Mxfp4Config(dequantize=True)
    return (
        GptOssForCausalLM.from_pretrained(
            checkpoints["hf"], dtype=torch.float32, attn_implementation="eager", quantization_config=quantization
        )
        .eval()
        .float()
    )  # some versions of transformers leave the experts in bfloat16


@pytest.fixture(scope="session")
def sequence() -> list[int]:
    """600 random tokens."""
    return torch.randint(0, 512, (600,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture
def compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are compiled, also where `make test` has kept the objects of the same ones (kept-g++)."""
    monkeypatch.delenv("KEPT_OBJECTS", raising=False)


@pytest.fixture(scope="session")
def cli() -> Callable[..., tuple[int, str, str]]:
    """Run the command in a process of its own: (exit code, stdout, stderr)."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "gptoss_export", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}), check=False)
        return done.returncode, done.stdout, done.stderr

    return run
