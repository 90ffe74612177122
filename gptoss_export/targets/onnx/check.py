"""Compares model.onnx with the artifact's manifest before onnxruntime opens it.

A model's code is what its nodes say, with the sizes of the model, the window, eps and more inside of them. So a model
holds a description of what it was built for. Its weights are regions of other files. They are compared one by one: each
weight of the manifest is one region, of its dtype and shape, in a file that the manifest lists with its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...artifact.description import check_description
from ...artifact.manifest import Manifest
from ...errors import ArtifactError, raise_all
from .model_files import ANY_ARCH, DESCRIPTION, LOGITS_FROM, LOGITS_TO
from .model_proto import ExternalData, Initializer, ModelContents, read_model
from .stored_tensors import all_initializers

_ADVICE = "build the artifact again"
_INT64 = 7  # of ONNX's TensorProto.DataType
_INSIDE = {LOGITS_FROM: Initializer(_INT64, (1,), None), LOGITS_TO: Initializer(_INT64, (1,), None)}


def read_code(path: Path) -> bytes:
    """The bytes of a model. Raises ArtifactError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); {_ADVICE}") from None


def check_model(path: Path, data: bytes, manifest: Manifest) -> None:
    """Raise ArtifactError where `data`, the model at `path`, is not the manifest's, and name each difference."""
    expected_hash, found_hash = manifest.files[path.name].sha256, hashlib.sha256(data).hexdigest()
    if found_hash != expected_hash:
        raise ArtifactError(f"{path}: sha256 {found_hash[:12]}..., expected {expected_hash[:12]}...; {_ADVICE}")
    model = _read(path, data)
    if others := sorted(model.properties.keys() - {DESCRIPTION}):
        raise ArtifactError(
            f"{path}: found the properties {', '.join(map(repr, others[:3]))}, expected none; {_ADVICE}"
        )
    check_description(manifest, ANY_ARCH, model.properties.get(DESCRIPTION), path)
    external = {item.data for item in model.initializers.values() if item.data is not None}
    heading = f"{path}: its weights lie in files that are not the artifact's; {_ADVICE}"
    raise_all(ArtifactError, heading, _file_problems(external, manifest, path.parent))
    expected = all_initializers(manifest.weights, manifest.device, path.parent) | _INSIDE
    raise_all(ArtifactError, f"{path}: its weights are not the manifest's; {_ADVICE}", _differences(model, expected))


def check_closed(path: Path, data: bytes) -> None:
    """Raise ArtifactError where the model reads another file."""
    for name, item in _read(path, data).initializers.items():
        if item.data is not None:
            raise ArtifactError(f"{path}: initializer {name!r} is {item.data}, expected data in the model; {_ADVICE}")


def _read(path: Path, data: bytes) -> ModelContents:
    try:
        return read_model(data)
    except ValueError as error:
        raise ArtifactError(f"{path}: is not a model that a build writes ({error}); {_ADVICE}") from None


def _file_problems(found: set[ExternalData], manifest: Manifest, folder: Path) -> Iterator[str]:
    """Files that are not the artifact's. The manifest's names are inside of the folder; a link may lead out of it."""
    for file in sorted({data.file for data in found}):
        if file not in manifest.files:
            yield f"{file!r} is not among the files of the manifest"
            continue
        path = folder / file
        links = [part for part in (path, *path.parents) if part != folder and folder in part.parents]
        if any(part.is_symlink() for part in links):
            yield f"{file!r} is a link, expected a file in the folder of the artifact"
    for data in sorted(found, key=str):
        size = manifest.files[data.file].bytes if data.file in manifest.files else 0
        if data.file in manifest.files and data.offset + data.length > size:
            yield f"{data} are outside of the file, which has {size} bytes"


def _differences(model: ModelContents, expected: Mapping[str, Initializer]) -> Iterator[str]:
    found = model.initializers
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            yield f"{name}: missing"
        elif name not in expected:
            yield f"{name!r}: no weight of the manifest"
        elif found[name] != expected[name]:
            yield f"{name}: found {_shown(found[name])}, expected {_shown(expected[name])}"


def _shown(item: Initializer) -> str:
    return f"type {item.type} {list(item.shape)} in {item.data or 'the model'}"
