"""`--verify-hashes` and `--no-verify-hashes` reach the load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cli_helpers import invoke


@pytest.fixture
def changed(uncompiled: Path, tmp_path: Path) -> Path:
    """An artifact with one changed byte in its weights. Its code cannot be loaded either, which is found later."""
    folder = shutil.copytree(uncompiled, tmp_path / "changed", copy_function=os.link)
    path = folder / "derived.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return folder


@pytest.mark.parametrize("options", [(), ("--verify-hashes",)], ids=["default", "asked for"])
def test_run_compares_hashes(changed: Path, options: tuple[str, ...]) -> None:
    done = invoke("run", changed, "--tokens", "1", *options)
    assert done.exit_code == 2
    assert "derived.safetensors: sha256" in done.stderr


def test_run_without_hashes_finds_the_code(changed: Path) -> None:
    done = invoke("run", changed, "--tokens", "1", "--no-verify-hashes")
    assert done.exit_code == 2
    assert "sha256" not in done.stderr.replace(".pt2: sha256", "")
    assert "derived.safetensors" not in done.stderr
