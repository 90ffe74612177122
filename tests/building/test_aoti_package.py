"""The compiled artifact: its files are those of the manifest, and its code holds no weights and no sources."""

from __future__ import annotations

from pathlib import Path

from aoti_packages import folders_of_this_machine, libraries_of, problems_of, symbols

from gptoss_export.artifact.files import describe_file
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.artifact.programs import programs_of
from gptoss_export.targets.aoti.package import package_name


def test_every_file_is_in_the_manifest_with_its_hash(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    files = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert files == {*manifest.files, "manifest.json"}
    assert all(describe_file(artifact / name) == spec for name, spec in manifest.files.items())


def test_code_holds_no_weights_and_no_sources(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    package = artifact / package_name(manifest.arch, manifest.model)
    assert problems_of(package) == []
    stored = sum(manifest.files[name].bytes for name in manifest.weight_files())
    assert package.stat().st_size < 20 << 20 and stored > 0
    assert all(path.stat().st_nlink > 1 for path in (artifact / "weights").iterdir())  # linked, not copied


def test_code_names_no_folder_of_the_building_machine(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    assert folders_of_this_machine(artifact / package_name(manifest.arch, manifest.model)) == []


def test_one_library_for_each_program(artifact: Path, tmp_path: Path) -> None:
    manifest = load_manifest(artifact)
    libraries = libraries_of(artifact / package_name(manifest.arch, manifest.model), tmp_path)
    assert (
        set(libraries)
        == set(manifest.programs)
        == {program.name for program in programs_of(manifest.sizes, manifest.device)}
    )
    for library in libraries.values():
        assert "AOTInductorModelContainerCreateWithDevice" in symbols(library, "--defined-only")
