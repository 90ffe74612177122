"""What is checked of a package before torch unpacks it: the hash, the members' names, what it was compiled for."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from aoti_packages import load_package

from gptoss_export.artifact.files import FileSpec, describe_file
from gptoss_export.artifact.manifest import Manifest, load_manifest
from gptoss_export.errors import ArtifactError
from gptoss_export.runtime.mapped_files import MappedFiles
from gptoss_export.targets.aoti.package import DESCRIPTION, archive, checked_members, package_name
from gptoss_export.targets.aoti.without_torch import LibtorchPackage

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return load_manifest(artifact)


@pytest.fixture(scope="module")
def members(artifact: Path, manifest: Manifest) -> Members:
    with zipfile.ZipFile(artifact / package_name(manifest.arch, manifest.model)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return out.getvalue()


def check(manifest: Manifest, folder: Path, data: bytes) -> bytes:
    """Check a package of these bytes, whose hash the manifest has."""
    name = package_name(manifest.arch, manifest.model)
    (folder / name).write_bytes(data)
    spec = FileSpec(len(data), hashlib.sha256(data).hexdigest())
    return checked_members(dataclasses.replace(manifest, files=manifest.files | {name: spec}), folder, manifest.arch)


def description(members: Members) -> str:
    return next(name for name in members if name.endswith(f"/extra/{DESCRIPTION}"))


def library(members: Members) -> str:
    return next(name for name in members if "/decode_1/" in name and name.endswith(".so"))


def test_a_whole_package_passes_and_keeps_its_members(manifest: Manifest, members: Members, tmp_path: Path) -> None:
    checked = check(manifest, tmp_path, written(members))
    assert checked == members
    with zipfile.ZipFile(io.BytesIO(archive(checked))) as found:
        assert {name: found.read(name) for name in found.namelist()} == members


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "archive/../../outside",
        "/tmp/outside",
        "archive/data/aotinductor/decode_1/../../../../outside.so",
        "archive/data/aotinductor/../decode_1/x.so",
        "archive/data/aotinductor/decode_1/sub/x.so",
        "archive/data/aotinductor/decode_1/..",
        "archive\\..\\outside",
        "archive/data/aotinductor/decode_1/x\x1b[2J.so",
        "archive/data/weights/payload.pickle",
        "archive/models/model.json",
        "other/data/aotinductor/decode_1/x.so",
        "/",
    ],
)
def test_a_member_that_does_not_belong_there_is_refused(
    manifest: Manifest, members: Members, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    root = library(members).partition("/")[0]
    data = written(members | {name.replace("archive", root): b"x"})
    with pytest.raises(ArtifactError, match="is no package of programs"):
        check(manifest, folder, data)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in folder.iterdir()] == [package_name(manifest.arch, manifest.model)]


CHANGES: dict[str, tuple[Callable[[Members], Members], str]] = {
    "no description": (
        lambda members: {name: data for name, data in members.items() if name != description(members)},
        "does not say what it was compiled for",
    ),
    "another description": (
        lambda members: members | {description(members): b'{"format": 1}'},
        "was compiled for something else",
    ),
    "no decode": (
        lambda members: {name: data for name, data in members.items() if "/decode_1/" not in name},
        "program decode_1: not in the package",
    ),
    "another program": (
        lambda members: members | {library(members).replace("/decode_1/", "/decode_9/"): b""},
        "program 'decode_9': not in the manifest",
    ),
    "nothing": (lambda members: {}, "program decode_1: not in the package"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_package_than_the_manifests_is_refused(
    manifest: Manifest, members: Members, tmp_path: Path, change: str
) -> None:
    make, message = CHANGES[change]
    with pytest.raises(ArtifactError) as caught:
        check(manifest, tmp_path, written(make(members)))
    assert message in str(caught.value)


def test_compressed_members_are_refused(manifest: Manifest, members: Members, tmp_path: Path) -> None:
    """A small file could hold any number of bytes."""
    bomb = members | {library(members): bytes(1 << 20)}
    with pytest.raises(ArtifactError, match="is compressed or encrypted"):
        check(manifest, tmp_path, written(bomb, zipfile.ZIP_DEFLATED))


def test_a_member_twice_is_refused(manifest: Manifest, members: Members, tmp_path: Path) -> None:
    out = io.BytesIO(written(members))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(zipfile.ZipInfo(library(members)), b"other code")
    with pytest.raises(ArtifactError, match="found twice"):
        check(manifest, tmp_path, out.getvalue())


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_a_cut_package_is_refused(manifest: Manifest, members: Members, tmp_path: Path, cut: int) -> None:
    with pytest.raises(ArtifactError, match="cannot be read as a package"):
        check(manifest, tmp_path, written(members)[:cut])


def test_the_hash_is_compared_with_the_bytes_that_are_used(artifact: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Whatever `verify_hashes` says, and whenever the file changes."""
    name = package_name(manifest.arch, manifest.model)
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: sha256 [0-9a-f]+\.\.\., expected"):
        checked_members(manifest, tmp_path, manifest.arch)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        checked_members(manifest, tmp_path, manifest.arch)


def test_a_library_that_is_none_is_an_error_that_names_the_program(
    manifest: Manifest, members: Members, tmp_path: Path
) -> None:
    check(manifest, tmp_path, written(members | {library(members): b"no code"}))
    with pytest.raises(ArtifactError, match="program decode_1 cannot be loaded"):
        load_package(manifest, tmp_path, torch.device("cpu"))


def test_a_program_without_a_library(manifest: Manifest, members: Members, tmp_path: Path) -> None:
    left = {name: data for name, data in members.items() if not (name.endswith(".so") and "/unembed_1/" in name)}
    name = package_name(manifest.arch, manifest.model)
    (tmp_path / name).write_bytes(written(left))
    changed = dataclasses.replace(manifest, files=manifest.files | {name: describe_file(tmp_path / name)})
    opened = LibtorchPackage(changed, tmp_path, manifest.arch, tune_process=False)
    with pytest.raises(ArtifactError, match="program unembed_1 has no library; build the artifact again"):
        opened.programs(MappedFiles(()))
