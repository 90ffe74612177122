"""manifest.json: what is in an artifact. Both ends of the format are in this file.

The manifest alone tells how to run the artifact: the model's shape, for which target, device and arch it
was compiled, each program's inputs in order, each weight's shape and the stored tensors it is made of,
the size and sha256 of every file, and the versions that built it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ModelConfig
from .errors import ArtifactError, raise_all

SCHEMA_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a program. role: "data", "cache" (read and written) or "weight"."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ProgramSpec:
    """The call of a program: inputs in order, contiguous; one output."""

    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


@dataclass(frozen=True)
class Part:
    """A stored tensor: its name within a safetensors file of the artifact."""

    file: str
    tensor: str


@dataclass(frozen=True)
class WeightSpec:
    """A weight is its parts, concatenated along the first dimension and converted to `dtype`."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class FileSpec:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    target: str
    device: str
    arch: str
    dtype: str
    model: ModelConfig
    max_batch: int
    max_context: int
    prefill_chunks: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    programs: dict[str, ProgramSpec]
    weights: dict[str, WeightSpec]
    files: dict[str, FileSpec]
    versions: dict[str, str]
    source: str
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": self.schema_version} | dataclasses.asdict(self) | {"model": self.model.to_json()}


def save_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(manifest.to_json(), indent=1) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json. Raises ArtifactError where it is missing, broken or of another schema."""
    path = folder / NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a folder; expected an artifact made by `gptoss-export build`")
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; {folder} is no artifact, or an incomplete one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}); build the artifact again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}, this gptoss-export reads {SCHEMA_VERSION}; "
            "build the artifact again or install the version that made it"
        )
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: malformed ({type(error).__name__}: {error}); build the artifact again") from None


def _parse(data: dict[str, Any]) -> Manifest:
    def tensor(spec: dict[str, Any]) -> TensorSpec:
        return TensorSpec(**spec | {"shape": tuple(spec["shape"])})

    def weight(spec: dict[str, Any]) -> WeightSpec:
        parts = tuple(Part(**part) for part in spec["parts"])
        return WeightSpec(tuple(spec["shape"]), spec["dtype"], parts)

    fields = dict(data)
    fields["model"] = ModelConfig.from_json(data["model"])
    fields["prefill_chunks"] = tuple(data["prefill_chunks"])
    fields["stop_tokens"] = tuple(data["stop_tokens"])
    fields["programs"] = {
        name: ProgramSpec(tuple(map(tensor, spec["inputs"])), tensor(spec["output"]))
        for name, spec in data["programs"].items()
    }
    fields["weights"] = {name: weight(spec) for name, spec in data["weights"].items()}
    fields["files"] = {name: FileSpec(**spec) for name, spec in data["files"].items()}
    return Manifest(**fields)


def describe_file(path: Path) -> FileSpec:
    """Size and sha256 of a file."""
    with path.open("rb") as stream:
        return FileSpec(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def check_files(manifest: Manifest, folder: Path, hashes: bool) -> None:
    """Raise ArtifactError naming every file that is missing, of another size or (if `hashes`) changed."""
    raise_all(ArtifactError, f"{folder}: not the files that were built", _changed(manifest, folder, hashes))


def _changed(manifest: Manifest, folder: Path, hashes: bool) -> Iterator[str]:
    from concurrent.futures import ThreadPoolExecutor

    whole = {}
    for name, spec in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name}: missing"
        elif (size := path.stat().st_size) != spec.bytes:
            yield f"{name}: {size} bytes, expected {spec.bytes}"
        else:
            whole[name] = path
    if hashes:
        with ThreadPoolExecutor() as pool:
            for name, found in zip(whole, pool.map(describe_file, whole.values()), strict=True):
                if found.sha256 != manifest.files[name].sha256:
                    yield f"{name}: sha256 {found.sha256[:12]}..., expected {manifest.files[name].sha256[:12]}..."
