"""Weights on a CPU that another process changes while they are in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_export import Runner, load
from gptoss_export.errors import ArtifactError, RunError
from gptoss_export.runtime.mapped_files import MappedFiles


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edited(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def replaced(path: Path) -> None:
    path.with_name("new").write_bytes(b"")
    path.with_name("new").rename(path)


def removed(path: Path) -> None:
    path.unlink()


def linked(path: Path) -> None:
    path.with_name("link").hardlink_to(path)


@pytest.mark.parametrize("change", [cut, edited, appended])
def test_a_changed_file_is_named(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    for file in (path, other):
        file.write_bytes(bytes(100))
        os.utime(file, (1, 1))
    mapped = MappedFiles([path, other])
    mapped.check()
    change(path)
    with pytest.raises(RunError, match="load the artifact again") as caught:
        mapped.check()
    assert str(path) in str(caught.value) and str(other) not in str(caught.value)


@pytest.mark.parametrize("change", [replaced, removed, linked])
def test_what_leaves_the_bytes_alone_is_no_change(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    mapped = MappedFiles([path])
    change(path)
    mapped.check()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"weights: cannot be read \(No such file"):
        MappedFiles([tmp_path / "weights"])


def test_a_loaded_artifact_whose_shard_is_cut_ends_the_call(artifact: Path, tmp_path: Path) -> None:
    """Every call, not the process."""
    folder = shutil.copytree(artifact, tmp_path / "copy")
    runner = load(folder)
    expected = runner.generate([1, 2, 3], 4).tokens
    stream = runner.stream([1, 2, 3], 4)
    assert next(stream).id == expected[0]
    cut(max((folder / "weights").iterdir(), key=lambda path: path.stat().st_size))
    with pytest.raises(RunError, match="weights were changed"):
        list(stream)
    with pytest.raises(RunError, match="weights were changed"):
        runner.generate([1, 2, 3], 4)
    with pytest.raises(RunError, match="weights were changed"):
        runner.score([1, 2, 3])


def test_a_loaded_artifact_needs_its_folder_no_more(artifact: Path, tmp_path: Path, loaded: Runner) -> None:
    folder = shutil.copytree(artifact, tmp_path / "copy")
    runner = load(folder)
    shutil.rmtree(folder)
    assert runner.generate([1, 2, 3], 4).tokens == loaded.generate([1, 2, 3], 4).tokens
