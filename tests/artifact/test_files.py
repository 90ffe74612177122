"""The files of an artifact, and what `load` refuses before it loads any code."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from gptoss_export import load
from gptoss_export.artifact import files
from gptoss_export.artifact.files import PIECE, FileSpec, check_hashes, combined_hash, describe_file
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.errors import ArtifactError

OTHER_MACHINE = {
    "machine": "riscv64",
    "system": "",
    "gpu": None,
    "options": {},
    "source_sha256": "",
    "tuned_configs": {},
}
THIS_MACHINE = OTHER_MACHINE | {"machine": platform.machine()}


@pytest.fixture
def copy(uncompiled: Path, tmp_path: Path) -> Path:
    """An artifact that a test may change."""
    return shutil.copytree(uncompiled, tmp_path / "copy")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_section(folder: Path, section: str, **changes: Any) -> None:
    edit(folder, **{section: json.loads((folder / "manifest.json").read_text())[section] | changes})


def remove_program(folder: Path, name: str) -> None:
    programs = json.loads((folder / "manifest.json").read_text())["programs"]
    edit(folder, programs={key: value for key, value in programs.items() if key != name})


def package(folder: Path) -> Path:
    return next(folder.glob("programs-*.pt2"))


def flip_bit(path: Path) -> None:
    """Change the last byte, which is neither a header nor padding."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_every_file_is_in_the_manifest_with_its_hash(uncompiled: Path) -> None:
    manifest = load_manifest(uncompiled)
    found = {path.relative_to(uncompiled).as_posix() for path in uncompiled.rglob("*") if path.is_file()}
    assert found == {*manifest.files, "manifest.json"}
    for name, spec in manifest.files.items():
        data = (uncompiled / name).read_bytes()
        assert spec == FileSpec(len(data), hashlib.sha256(data).hexdigest())
        assert spec == describe_file(uncompiled / name)


@pytest.mark.parametrize("size", [0, 5, 9, 10, 11, 20, 23])
def test_large_files_have_hashes_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Each change of any byte is found by them alone."""
    monkeypatch.setattr(files, "PIECE", 10)
    monkeypatch.setattr(files, "_READ", 5)
    data = bytes(range(size))
    (tmp_path / "f").write_bytes(data)
    spec = describe_file(tmp_path / "f")
    pieces = [blake3(data[start : start + 10]).hexdigest() for start in range(0, size, 10)]
    assert spec == FileSpec(size, hashlib.sha256(data).hexdigest(), tuple(pieces) if size > 10 else ())
    check_hashes({"f": spec}, tmp_path, ["f"])
    for at in range(size):
        (tmp_path / "f").write_bytes(data[:at] + b"\xff" + data[at + 1 :])
        with pytest.raises(
            ArtifactError, match=rf"f: {f'blake3 .*from {at // 10 * 10} on' if size > 10 else 'sha256'}"
        ):
            check_hashes({"f": spec}, tmp_path, ["f"])
    (tmp_path / "f").write_bytes(data + b"x")
    with pytest.raises(ArtifactError, match="f: blake3" if size > 10 else "f: sha256"):
        check_hashes({"f": spec}, tmp_path, ["f"])


def test_combined_hash_is_that_of_sha256sum() -> None:
    """Of the lines that sha256sum prints for the files, sorted by name."""
    specs = {"b": FileSpec(0, "22"), "a": FileSpec(5, "11")}
    assert combined_hash(specs) == hashlib.sha256(b"11  a\n22  b\n").hexdigest()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: not found"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "holds a list, expected an object"),
        (lambda f: (f / "manifest.json").write_text("{}"), "schema_version is None"),
        (lambda f: edit(f, schema_version=99), "schema_version is 99"),
        (lambda f: edit(f, programs={"decode_3": {}}), "malformed"),
        (lambda f: edit(f, programs={}), "programs: decode_1 is missing from the manifest"),
        (lambda f: remove_program(f, "choose_drawn"), "programs: choose_drawn is missing from the manifest"),
        (lambda f: edit(f, surprise=1), "malformed"),
        (lambda f: edit(f, target="abacus"), "target 'abacus'"),
        (lambda f: edit(f, archs=["sm_90"]), "artifact has code for sm_90, this machine is"),
        (lambda f: edit(f, versions={"torch": "2.4.0"}), "built with 2.4.0, found"),
        (lambda f: edit(f, versions={}), "torch is missing"),
        (lambda f: edit(f, weights={}), "(?s)weight model.embed_tokens.weight: missing.*and 44 more"),
        (lambda f: edit(f, files={}), "is not among the files"),
        (lambda f: edit(f, files={"../secret": {"bytes": 1, "sha256": ""}}), "outside of the artifact"),
        (
            lambda f: edit(f, files={"a": {"bytes": PIECE + 1, "sha256": "0" * 64, "pieces": ["0" * 64]}}),
            "files: 'a' has 1 hashes of pieces, expected 2",
        ),
        (lambda f: edit(f, files={"a": {"bytes": 1, "sha256": "0" * 64, "pieces": [1]}}), "files: 'a' has 1 of pieces"),
        (lambda f: edit(f, files={"/secret": {"bytes": 1, "sha256": ""}}), "outside of the artifact"),
        (lambda f: edit(f, device="tpu"), "device: found 'tpu'"),
        (lambda f: edit(f, archs=[]), "archs: found"),
        (lambda f: edit(f, archs=[1]), "archs: found"),
        (
            lambda f: edit(f, provenance=THIS_MACHINE | {"tuned_configs": {"sm_90": None}}),
            "tuned_configs: found {'sm_90': None}, expected lists",
        ),
        (lambda f: edit(f, provenance=THIS_MACHINE | {"machine": None}), "machine: found None, expected a string"),
        (lambda f: edit(f, provenance=OTHER_MACHINE), "machine: artifact was built on riscv64, this machine is"),
        (lambda f: edit(f, target=[]), "target: found"),
        (lambda f: edit(f, target_options=[]), "target_options: found"),
        (lambda f: edit(f, stop_tokens=["a"]), "stop_tokens"),
        (lambda f: edit(f, stop_tokens=[512]), "stop_tokens"),
        (lambda f: edit_section(f, "sizes", widths=[-1]), "sizes.widths"),
        (lambda f: edit_section(f, "sizes", widths=[1, 99]), "found decode_3, expected decode_1, decode_99"),
        (lambda f: edit_section(f, "sizes", widths=["3"]), "sizes.widths"),
        (lambda f: edit_section(f, "sizes", widths=[]), "sizes.widths"),
        (lambda f: edit_section(f, "sizes", widths=[3, 1]), "sizes.widths: found .*, expected ascending numbers"),
        (
            lambda f: edit_section(f, "sizes", max_context=10**9),
            "input pages.full_attention .* expected table .* by the model",
        ),
        (lambda f: edit_section(f, "sizes", prefill_chunks=[]), "sizes.prefill_chunks"),
        (
            lambda f: edit_section(f, "sizes", prefill_chunks=[7]),
            "found prefill_16, expected decode_1, decode_3, prefill_7",
        ),
        (lambda f: edit_section(f, "model", layer_types=["full_attention"] * 4), "k_cache.0"),
        (lambda f: edit_section(f, "model", vocab_size="512"), "vocab_size"),
        (lambda f: edit_section(f, "model", num_hidden_layers=2), "layer_types"),
        (lambda f: package(f).unlink(), "programs-.*.pt2: missing"),
        (lambda f: package(f).write_bytes(b"short"), "programs-.*.pt2: 5 bytes, expected 7000"),
        (lambda f: next((f / "weights").iterdir()).unlink(), "weights/.*: missing"),
        (lambda f: flip_bit(package(f)), "programs-.*.pt2: sha256"),
        (lambda f: None, "cannot be read as a package"),  # undamaged: what is loaded last is the code
    ],
)
def test_refused(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(ArtifactError, match=message):
        load(copy)


def test_code_for_a_gpu_needs_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_export.targets.aoti.load.current_gpu_arch", lambda: None)
    edit(copy, device="cuda", archs=["sm_90"])
    with pytest.raises(ArtifactError, match=r"artifact is for a CUDA GPU \(sm_90\), found none here"):
        load(copy)


def test_other_folders_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder; expected an artifact"):
        load(tmp_path / "none")
    with pytest.raises(ArtifactError, match="is no artifact, or an incomplete one"):
        load(tmp_path)


def test_every_changed_file_is_named(copy: Path) -> None:
    flip_bit(package(copy))
    flip_bit(copy / "tokenizer.json")
    with pytest.raises(ArtifactError) as caught:
        load(copy)
    assert f"{package(copy).name}: sha256" in str(caught.value) and "tokenizer.json: sha256" in str(caught.value)


@pytest.mark.parametrize("name", ["derived.safetensors", "weights/model-00003-of-00007.safetensors"])
def test_weights_are_hashed(copy: Path, name: str) -> None:
    """The code cannot be loaded either. The changed file is the cause that is reported."""
    flip_bit(copy / name)
    with pytest.raises(ArtifactError, match=rf"{name}: sha256 [0-9a-f]+\.\.\., expected"):
        load(copy)
    with pytest.raises(ArtifactError, match="cannot be read as a package"):
        load(copy, verify_hashes=False)


def test_weights_that_contradict_the_manifest(copy: Path) -> None:
    weights = json.loads((copy / "manifest.json").read_text())["weights"]
    weights["model.norm.weight"]["parts"] = weights["lm_head.weight"]["parts"]
    weights["lm_head.weight"]["parts"] = [weights["lm_head.weight"]["parts"][0] | {"tensor": "ghost"}]
    edit(copy, weights=weights)
    with pytest.raises(ArtifactError) as caught:
        load(copy)
    assert "model.norm.weight: stored shape [512, 96], expected [96]" in str(caught.value)
    assert "ghost missing" in str(caught.value)


def test_weights_that_are_no_safetensors(copy: Path) -> None:
    path = copy / "derived.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ArtifactError, match=r"derived\.safetensors: cannot be read as safetensors"):
        load(copy, verify_hashes=False)


def test_what_a_killed_build_left_behind(uncompiled: Path, tmp_path: Path) -> None:
    """All is written, the manifest too, and only the rename is missing."""
    folder = shutil.copytree(uncompiled, tmp_path / ".out-abc.partial")
    with pytest.raises(ArtifactError, match="a killed build left this folder behind; remove it and build again"):
        load(folder)
