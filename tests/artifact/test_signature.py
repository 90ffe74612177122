"""Signatures: an artifact that no trusted key signed is refused before anything but its manifest is opened."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from signing_keys import make_keys

from artifacts import OPTIONS, FakeCode, compile_nothing
from gptoss_export import BuildOptions, build, load, sign, verify
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.signature import SIGNATURE
from gptoss_export.bench import bench
from gptoss_export.errors import ArtifactError, UsageError
from gptoss_export.progress import Progress

_OPENED: list[list[str]] = []  # the recordings that are going on


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        for names in _OPENED:
            names.append(os.fspath(arguments[0]))


sys.addaudithook(_record)


@contextmanager
def opened_files(folder: Path) -> Iterator[list[str]]:
    """The names of the files of `folder` that Python opens, each as often as it is opened."""
    paths: list[str] = []
    names: list[str] = []
    _OPENED.append(paths)
    try:
        yield names
    finally:
        _OPENED.remove(paths)
        names += [os.path.relpath(path, folder) for path in paths if path.startswith(f"{folder}{os.sep}")]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "key")


@pytest.fixture
def copy(uncompiled: Path, tmp_path: Path) -> Path:
    """An artifact without code, not signed."""
    return shutil.copytree(uncompiled, tmp_path / "copy")


@pytest.fixture
def signed(copy: Path, keys: tuple[Path, Path]) -> Path:
    sign(copy, keys[0])
    return copy


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change the manifest to one that is right in itself."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1) + "\n")


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_signed_artifact_runs(artifact: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    sign(folder, keys[0])
    runner = load(folder, trust=keys[1])
    assert runner.generate([1, 2, 3], 3).tokens == load(artifact).generate([1, 2, 3], 3).tokens
    assert list(runner.load_seconds)[1:4] == ["check files", "hash the code", "check the machine"]


def test_the_signature_is_ed25519_over_the_bytes_of_the_manifest(signed: Path, keys: tuple[Path, Path]) -> None:
    public: Any = load_pem_public_key(keys[1].read_bytes())
    public.verify((signed / SIGNATURE).read_bytes(), (signed / "manifest.json").read_bytes())


@pytest.mark.parametrize("openssh", [False, True])
def test_build_signs(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openssh: bool
) -> None:
    compile_nothing(monkeypatch, FakeCode, programs=["unembed_1"])
    private, public = make_keys(tmp_path, "key", openssh)
    folder = tmp_path / "signed"
    manifest = build(checkpoints["hf"], folder, BuildOptions("aoti", "cpu", **OPTIONS), sign_key=private)
    assert SIGNATURE not in manifest.files
    assert str(private) not in (folder / "manifest.json").read_text()
    assert (folder / SIGNATURE).stat().st_mode == (folder / "manifest.json").stat().st_mode
    with pytest.raises(ArtifactError, match="programs: decode_1 is missing"):  # after the signature and the hashes
        load(folder, trust=public)


def test_a_build_checks_its_key_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--sign-key .*none: not found"):
        build(tmp_path / "no-checkpoint", tmp_path / "output", sign_key=tmp_path / "none")
    assert not (tmp_path / "output").exists()


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / SIGNATURE).unlink(), r"is not signed \(manifest.json.sig not found\), expected a signature by"),
    (lambda f: edit_manifest(f, source="another"), "the signature is not one of .*key.pub over this manifest.json"),
    (lambda f: (f / "manifest.json").write_text("{"), "the signature is not one of"),
    (lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes() + b"\n"), "is not one of"),
    (lambda f: flip_bit(f / SIGNATURE), "the signature is not one of"),
    (lambda f: (f / SIGNATURE).write_bytes(b""), "found 0 bytes, expected the 64 of a signature"),
    (lambda f: (f / SIGNATURE).write_bytes(bytes(64)), "the signature is not one of"),
    (lambda f: os.truncate(f / SIGNATURE, 63), "found 63 bytes, expected the 64"),
    (lambda f: os.truncate(f / SIGNATURE, 1 << 30), "found more than 64 bytes, expected the 64"),
    (lambda f: [(f / SIGNATURE).unlink(), (f / SIGNATURE).mkdir()], "sig: found a folder, expected a regular file"),
    (lambda f: [(f / SIGNATURE).unlink(), os.mkfifo(f / SIGNATURE)], "sig: found a FIFO, expected a regular file"),
    (lambda f: [(f / SIGNATURE).unlink(), (f / SIGNATURE).symlink_to(SIGNATURE)], "sig: cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_what_is_not_signed_is_refused_unopened(
    signed: Path, keys: tuple[Path, Path], damage: Callable[[Path], object], message: str
) -> None:
    damage(signed)
    with opened_files(signed) as names, pytest.raises(ArtifactError, match=message):
        load(signed, trust=keys[1])
    assert names.count("manifest.json") == 1, "the bytes that are checked are those that are parsed"
    assert set(names) <= {"manifest.json", SIGNATURE}


def test_another_key_is_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")[1]
    with pytest.raises(ArtifactError, match=r"the signature is not one of .*other.pub over"):
        load(signed, trust=other)
    with pytest.raises(ArtifactError, match=r"programs-.*pt2"):  # the code, which this artifact does not have
        load(signed, trust=[other, keys[1]])


def test_a_signature_of_another_artifact_is_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(signed, tmp_path / "other")
    edit_manifest(other, source="another")
    sign(other, keys[0], replace=True)
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(ArtifactError, match="the signature is not one of"):
        load(signed, trust=keys[1])


@pytest.mark.parametrize("name", ["tokenizer.json", "programs-*.pt2", "weights/*-00003-*.safetensors"])
def test_a_changed_file_is_refused(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    flip_bit(next(signed.glob(name)))
    with pytest.raises(ArtifactError, match=r"sha256 .*, expected"):
        load(signed, trust=keys[1])


def test_code_is_hashed_before_a_target_reads_a_file(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def problems(*_: object) -> list[str]:
        raise AssertionError("the target was asked")

    monkeypatch.setattr("gptoss_export.targets.aoti.load.AotiLoader.problems", problems)
    flip_bit(next(signed.glob("*.pt2")))
    with pytest.raises(ArtifactError, match="pt2: sha256"):
        load(signed, trust=keys[1])


def test_hashes_cannot_be_left_out(signed: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"--no-verify-hashes .*as well; a signature covers files by their hashes"):
        load(signed, verify_hashes=False, trust=keys[1])
    with pytest.raises(UsageError, match="--no-verify-hashes"):
        verify(signed, "no-checkpoint", "reference", verify_hashes=False, trust=keys[1])
    with pytest.raises(UsageError, match="--no-verify-hashes"):
        bench(signed, [1], [1], verify_hashes=False, trust=keys[1])


def test_an_empty_list_of_keys_is_no_trust_in_everything(signed: Path) -> None:
    with pytest.raises(UsageError, match="--trust: found no key, expected one or more"):
        load(signed, trust=[])


def test_verify_and_bench_refuse_what_is_not_signed(
    signed: Path, uncompiled: Path, keys: tuple[Path, Path], checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(ArtifactError, match="is not signed"):
        verify(uncompiled, checkpoints["hf"], "reference", trust=keys[1])
    with pytest.raises(ArtifactError, match="is not signed"):
        verify(signed, checkpoints["hf"], "reference", compare_with=uncompiled, trust=keys[1])
    with pytest.raises(ArtifactError, match="is not signed"):
        bench(uncompiled, [1], [1], trust=keys[1])


def test_signing_twice_is_asked_for(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other, public = make_keys(tmp_path, "other")
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(UsageError, match=r"is signed with this key already .*give --replace"):
        sign(signed, keys[0])
    with pytest.raises(UsageError, match="has a signature already, which is not one of this key over this manifest"):
        sign(signed, other)
    assert (signed / SIGNATURE).read_bytes() == before
    sign(signed, other, replace=True)
    with pytest.raises(ArtifactError, match="the signature is not one of"):
        load(signed, trust=keys[1])
    with pytest.raises(ArtifactError, match=r"programs-.*pt2"):
        load(signed, trust=public)


def test_what_differs_from_the_manifest_is_not_signed(copy: Path, keys: tuple[Path, Path]) -> None:
    flip_bit(copy / "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: sha256"):
        sign(copy, keys[0])
    os.truncate(copy / "tokenizer.json", 5)
    with pytest.raises(ArtifactError, match=r"tokenizer.json: 5 bytes, expected"):
        sign(copy, keys[0], verify_hashes=False)
    assert not (copy / SIGNATURE).exists()


def test_files_outside_of_the_manifest_are_named(copy: Path, keys: tuple[Path, Path]) -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    sign(copy, keys[0], progress=Notes())
    assert notes == []
    (copy / "weights" / "more.txt").write_text("")
    sign(copy, keys[0], replace=True, progress=Notes())
    assert len(notes) == 1 and notes[0].endswith("no command reads: weights/more.txt")


def test_a_signature_that_cannot_be_written_leaves_nothing(
    copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(copy.rglob("*"))
    monkeypatch.setattr("gptoss_export.artifact.signature.os.fsync", full)
    with pytest.raises(UsageError, match=r"manifest.json.sig: cannot be written \(No space left on device\)"):
        sign(copy, keys[0])
    assert sorted(copy.rglob("*")) == before


def test_without_trust_a_signature_is_not_read(signed: Path) -> None:
    (signed / SIGNATURE).write_bytes(b"")
    with opened_files(signed) as names, pytest.raises(ArtifactError, match=r"programs-.*pt2"):
        load(signed)
    assert SIGNATURE not in names
    assert load_manifest(signed).target == "aoti"
