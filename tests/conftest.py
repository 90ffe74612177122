"""Fixtures: tiny checkpoints in the three layouts, artifacts built from them, transformers on the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock  # which torch depends on

from gptoss_export import BuildOptions, Runner, build, load
from gptoss_export.checkpoint.layouts import LAYOUTS
from gptoss_export.checkpoint.synthetic import PRESETS, write_synthetic

SEED = 7
OPTIONS = {"max_batch": 3, "max_context": 4400, "prefill_chunks": (16, 64)}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """The same tiny model in every layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    for layout in LAYOUTS.values():
        write_synthetic(root / layout.name, PRESETS["tiny"], layout, SEED, torch.device("cpu"), tokenizer=True)
    return {name: root / name for name in LAYOUTS}


def compile_artifact(checkpoint: Path, output: Path, **options) -> Path:
    build(checkpoint, output, BuildOptions("aoti", "cpu", **(OPTIONS | options)))
    return output


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of the tests to want it makes for all of them."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    root.mkdir(exist_ok=True)
    with FileLock(root / "lock"):
        if not (root / "made").exists():
            make(root)
            (root / "made").touch()
    return root


@pytest.fixture(scope="session")
def artifact(checkpoints, tmp_path_factory) -> Path:
    """The tiny model for CPU in float32: three slots, two chunk sizes, a context past 4,096. Nobody changes it."""
    return made_once(tmp_path_factory, "tiny", lambda root: compile_artifact(checkpoints["hf"], root / "float32")) / "float32"


@pytest.fixture(scope="session")
def loaded(artifact) -> Runner:
    return load(artifact)


@pytest.fixture
def runner(loaded) -> Runner:
    """The loaded artifact with empty slots."""
    loaded.reset()
    return loaded


@pytest.fixture(scope="session")
def transformer(checkpoints):
    """Hugging Face's model on the same checkpoint, read by Hugging Face, float32, eager attention."""
    from transformers import GptOssForCausalLM, Mxfp4Config

    return GptOssForCausalLM.from_pretrained(
        checkpoints["hf"], dtype=torch.float32, attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def sequence() -> list[int]:
    return torch.randint(0, 512, (600,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="session")
def cli():
    """Run the command in a process of its own: (exit code, stdout, stderr)."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "gptoss_export", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}))
        return done.returncode, done.stdout, done.stderr

    return run
