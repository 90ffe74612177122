"""The weights of an artifact: linked, copied or converted, equal in all layouts, hashed while programs are compiled."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artifacts import NothingCompiled, compile_nothing, loaded_weights
from gptoss_export import BuildOptions, build
from gptoss_export.artifact.files import FileSpec, describe_file
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.checkpoint import LAYOUTS, open_checkpoint
from gptoss_export.compiler.export import TracedProgram
from gptoss_export.compiler.weights import write_weights
from gptoss_export.errors import BuildError
from gptoss_export.model import mxfp4
from gptoss_export.model.decoder import yarn_inv_freq
from gptoss_export.model.parameters import INV_FREQ
from gptoss_export.progress import Progress
from gptoss_export.targets.base_compiler import CompileJob

CPU = torch.device("cpu")
SMALL = BuildOptions("aoti", "cpu", max_context=64, prefill_chunks=(8,))


class Notes(Progress):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def no_links(monkeypatch: pytest.MonkeyPatch, number: int, after: int = 0) -> None:
    """os.link raises this error, after some files."""
    link, done = os.link, []

    def refuse(source: Path, destination: Path) -> None:
        if len(done) >= after:
            raise OSError(number, os.strerror(number), source)
        done.append(source)
        link(source, destination)

    monkeypatch.setattr(os, "link", refuse)


def test_shards_are_linked_without_a_word(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    progress = Notes()
    write_weights(open_checkpoint(checkpoints["hf"]), "float32", tmp_path, progress)
    assert progress.notes == []
    for path in checkpoints["hf"].glob("*.safetensors"):
        assert (tmp_path / "weights" / path.name).samefile(path)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM], ids=os.strerror)
@pytest.mark.parametrize("linked", [0, 2])
def test_copying_is_announced_with_its_size(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, linked: int
) -> None:
    no_links(monkeypatch, number, after=linked)
    progress = Notes()
    write_weights(open_checkpoint(checkpoints["hf"]), "float32", tmp_path, progress)
    shards = sorted(checkpoints["hf"].glob("*.safetensors"))
    size = sum(path.stat().st_size for path in shards[linked:])
    (note,) = progress.notes
    assert f"copying {len(shards) - linked} files, {size / 1e9:.1f} GB" in note
    assert str(shards[linked]) in note and os.strerror(number) in note
    for index, path in enumerate(shards):
        written = tmp_path / "weights" / path.name
        assert written.samefile(path) == (index < linked)
        assert written.read_bytes() == path.read_bytes()


def test_a_copy_of_gigabytes_says_how_many(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard is made large, without a byte on the disk."""
    checkpoint = shutil.copytree(checkpoints["hf"], tmp_path / "checkpoint")
    opened = open_checkpoint(checkpoint)
    os.truncate(sorted(checkpoint.glob("*.safetensors"))[0], 3_000_000_000)
    no_links(monkeypatch, errno.EXDEV)
    monkeypatch.setattr(shutil, "copyfile", lambda source, destination: None)
    progress = Notes()
    (tmp_path / "out").mkdir()
    write_weights(opened, "float32", tmp_path / "out", progress)
    assert "copying 7 files, 3.0 GB" in progress.notes[0]


def test_a_full_disk_is_no_reason_to_copy(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_nothing(monkeypatch, programs=())
    no_links(monkeypatch, errno.ENOSPC)
    progress = Notes()
    with pytest.raises(OSError, match="No space left on device"):
        build(checkpoints["hf"], tmp_path / "out", SMALL, progress)
    assert progress.notes == [] and list(tmp_path.iterdir()) == []


def test_layouts_give_equal_weights(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code depends on sizes and dtypes alone. With equal weights every layout behaves as the compiled artifact of
    layout hf does, which the tests of the runtime and of verify run."""
    compile_nothing(monkeypatch, programs=())
    config = open_checkpoint(checkpoints["hf"]).config
    expected = {name: value.float() for name, value in as_numbers(read_parameters(checkpoints["hf"])).items()}
    expected[INV_FREQ] = yarn_inv_freq(config.rope, config.head_dim)
    for layout in LAYOUTS:
        manifest = build(checkpoints[layout], tmp_path / layout, dataclasses.replace(SMALL, experts="mxfp4"))
        assert manifest == load_manifest(tmp_path / layout)
        assert manifest.source == f"{layout} (layout {layout})"
        weights = as_numbers(loaded_weights(manifest, tmp_path / layout))
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            assert value.dtype == torch.float32 and torch.equal(value, expected[name]), (layout, name)


def read_parameters(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.parameter(name) for name in checkpoint.parameters()}


def as_numbers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with MXFP4 ones dequantized: a group of numbers can have several codes."""
    found = dict(weights)
    for name in [name for name in weights if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        found[stem] = mxfp4.dequantize(found.pop(name), found.pop(f"{stem}_scales"))
    return found


# Hashing beside compiling

THREADS = min(4, os.cpu_count() or 1)  # that hash


class Hashing:
    """Hashes of a build that end when `go` is set; `begun` are the files whose hashes were begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.first, self.go = threading.Event(), threading.Event()

    def describe(self, path: Path) -> FileSpec:
        self.begun.append(path.name)
        self.first.set()
        assert self.go.wait(60)
        return describe_file(path)

    def compilation(self, act: Callable[[], None]) -> type[NothingCompiled]:
        """Compiles by calling `act`, once hashing has begun."""
        first = self.first

        class Acts(NothingCompiled):
            def __init__(self, job: CompileJob) -> None:
                super().__init__(job)
                assert first.wait(60), "no hash was begun before the programs were compiled"
                act()

            def compile(self, program: TracedProgram) -> None:
                raise AssertionError("no program was asked for")

            def finish(self) -> list[Path]:
                (self.job.folder / "code").write_bytes(b"code")
                return [Path("code")]

        return Acts


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Hashing:
    found = Hashing()
    monkeypatch.setattr("gptoss_export.artifact.files.describe_file", found.describe)
    return found


def test_weights_are_hashed_while_programs_are_compiled(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashing: Hashing
) -> None:
    compile_nothing(monkeypatch, hashing.compilation(hashing.go.set), programs=())
    manifest = build(checkpoints["hf"], tmp_path / "a", SMALL)
    assert {"code", "derived.safetensors"} <= set(manifest.files) and list(manifest.files) == sorted(manifest.files)
    assert all(describe_file(tmp_path / "a" / name) == spec for name, spec in manifest.files.items())
    assert {Path(name).name for name in manifest.files} <= set(hashing.begun)


def test_a_build_that_fails_does_not_hash_the_rest(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashing: Hashing
) -> None:
    def fail() -> None:
        threading.Timer(0.5, hashing.go.set).start()
        raise BuildError("no")

    compile_nothing(monkeypatch, hashing.compilation(fail), programs=())
    with pytest.raises(BuildError, match="no"):
        build(checkpoints["hf"], tmp_path / "a", SMALL)
    assert list(tmp_path.iterdir()) == []
    assert len(hashing.begun) <= THREADS < len(list(checkpoints["hf"].glob("*.safetensors")))


def test_a_file_that_cannot_be_hashed(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(path: Path) -> FileSpec:
        raise OSError(f"{path.name}: disk error")

    monkeypatch.setattr("gptoss_export.artifact.files.describe_file", describe)
    compile_nothing(monkeypatch, programs=())
    with pytest.raises(OSError, match=r"derived\.safetensors: disk error"):
        build(checkpoints["hf"], tmp_path / "a", SMALL)
    assert list(tmp_path.iterdir()) == []
