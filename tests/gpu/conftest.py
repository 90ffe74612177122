"""An artifact for the GPU of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cuda_artifact(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., tuple[int, str, str]]
) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    sizes = ("--max-batch", 3, "--max-context", 4400, "--prefill-chunk", 16, "--prefill-chunk", 64)
    code, out, err = cli("build", checkpoints["hf"], "-o", folder, "--device", "cuda", *sizes, "--json")
    assert code == 0, err
    assert json.loads(out)["arch"].startswith("sm_")
    return folder
