"""Where the weights of a model lie: regions of an artifact's safetensors files, by the files' headers.

Both halves of the target use this. The build writes the regions into model.onnx, and the loader compares them with it.
Imports neither torch nor onnx: a model for a CPU runs without them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from ...artifact.manifest import Part, WeightSpec
from ...errors import ArtifactError
from ...json_file import parse_object
from ...model.expert_formats import MXFP4_GROUP
from ...model.parameters import is_expert_weight, layer_of
from ...values import shown
from .model_proto import ExternalData, Initializer

FLOAT, UINT8, FLOAT16, BFLOAT16, FLOAT8E8M0 = 1, 2, 10, 16, 24  # numbers of ONNX's TensorProto.DataType
# By the names that safetensors has for them: the type, and the bytes of one value.
TYPES = {"BF16": (BFLOAT16, 2), "F32": (FLOAT, 4), "F16": (FLOAT16, 2), "U8": (UINT8, 1)}
_LARGEST_HEADER = 100 << 20  # bytes; the limit of safetensors


class StoredTensors:
    """The tensors in safetensors files below a folder. Reads nothing but the files' headers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[str, tuple[int, int, dict[str, Any]]] = {}

    def initializer(self, part: Part) -> Initializer:
        """The tensor of a part, as an initializer that refers to it.

        Raises ArtifactError for a file that is no safetensors file, and for a tensor that does not lie inside of it.
        """
        size, start, header = self._header(part.file)
        path, entry = self._folder / part.file, header.get(part.tensor)
        if not isinstance(entry, dict):
            raise ArtifactError(f"{path}: tensor {part.tensor} is missing; build the artifact again")
        kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if (
            not isinstance(kind, str)
            or kind not in TYPES
            or not _are_counts(shape)
            or not _are_counts(offsets)
            or len(offsets) != 2
        ):
            raise ArtifactError(f"{path}: tensor {part.tensor} is {shown(entry)}; build the artifact again")
        onnx_type, width = TYPES[kind]
        begin, end = offsets
        if end - begin != math.prod(shape) * width or start + end > size:
            raise ArtifactError(
                f"{path}: tensor {part.tensor} of {kind} {shape} lies at {offsets}, the file has {size - start} bytes "
                "for tensors; build the artifact again"
            )
        return Initializer(onnx_type, tuple(shape), ExternalData(part.file, start + begin, end - begin))

    def _header(self, file: str) -> tuple[int, int, dict[str, Any]]:
        """The size of a file, where its tensors begin, and its header."""
        if file not in self._headers:
            path = self._folder / file
            try:
                with path.open("rb") as stream:
                    size = path.stat().st_size
                    (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
                    if length > min(size, _LARGEST_HEADER):
                        raise ArtifactError(f"{path}: is no safetensors file; build the artifact again")
                    data = stream.read(length)
            except OSError as error:
                raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from None
            header = parse_object(data, ArtifactError, subject=f"{path}: its header", advice="build the artifact again")
            self._headers[file] = size, 8 + length, header
        return self._headers[file]


def initializers(name: str, weight: WeightSpec, device: str, tensors: StoredTensors) -> dict[str, Initializer]:
    """The initializers of a weight, by name. A weight of one part has the weight's name. A weight of several parts has
    one for each, which the model joins.

    Raises ArtifactError as `StoredTensors.initializer`, and for stored tensors that are not the weight.
    """
    parts = weight.parts
    if device == "cuda" and is_expert_weight(name) and name.endswith("_blocks"):
        parts = (Part(repacked_file(name), name),)
    found = {
        name if len(parts) == 1 else f"{name}.{index}": tensors.initializer(part) for index, part in enumerate(parts)
    }
    if problem := next(_differences(weight, list(found.values()), parts != weight.parts), None):
        raise ArtifactError(f"{parts[0].file}: weight {name} {problem}; build the artifact again")
    if device == "cuda" and is_expert_weight(name) and name.endswith("_scales"):
        found = {label: replace(item, type=FLOAT8E8M0) for label, item in found.items()}
    return found


def all_initializers(weights: Mapping[str, WeightSpec], device: str, folder: Path) -> dict[str, Initializer]:
    """The initializers of all weights. Raises ArtifactError as `initializers`."""
    tensors = StoredTensors(folder)
    found: dict[str, Initializer] = {}
    for name, weight in weights.items():
        found |= initializers(name, weight, device, tensors)
    return found


def repacked_file(name: str) -> str:
    """The file that holds a layer's blocks in the layout of QMoE (repack.py); `name`: of a weight of that layer."""
    return f"weights/repacked-{layer_of(name):03}.safetensors"


def repacked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of blocks [E, N, K / 32, 16] in the layout of QMoE: [E, K, N / 2]."""
    experts, rows, groups, _ = shape
    return experts, groups * MXFP4_GROUP, rows // 2


def _differences(weight: WeightSpec, found: list[Initializer], repacked: bool) -> Iterator[str]:
    expected = repacked_shape(weight.shape) if repacked else weight.shape
    first = found[0].shape
    if not first or any(item.shape[1:] != first[1:] for item in found):
        yield f"has parts of shapes {[list(item.shape) for item in found]}"
        return
    shape = (sum(item.shape[0] for item in found), *first[1:])
    if shape != expected:
        yield f"has the stored shape {list(shape)}, expected {list(expected)}"
    types = {UINT8} if weight.dtype == "uint8" else {FLOAT, FLOAT16, BFLOAT16}
    if wrong := {item.type for item in found} - types:
        names = [name for name, (number, _) in TYPES.items() if number in wrong]
        yield f"is stored as {', '.join(names)}, expected what {weight.dtype} is made of"


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
