"""Loads the weights: from the artifact's safetensors files to the device.

On a CPU a weight that is stored whole, and in the dtype that the programs want, is used where it is mapped.
Everything else is copied into one allocation: weights fragment no memory and all have the same alignment."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from ..artifact.manifest import Manifest, WeightSpec
from ..errors import ArtifactError, raise_all
from ..machine_limits import check_threads
from ..model.dtypes import ITEM_SIZES
from .dtype_conversion import converted
from .stored_tensors import StoredFile, StoredTensor
from .tensors import Tensor, Tensors

_ALIGNMENT = 256  # bytes; compiled CUDA code clones inputs that are not aligned to 16


class Weights:
    """Every weight by name, with the shape and dtype of the manifest, on its way to the device.

    tensors  where the weights are; their contents are there after `wait`

    A `with` ends when they are there, whatever happens in it.
    """

    def __init__(self, tensors: dict[str, Tensor], fill: Callable[[], None]) -> None:
        self.tensors = tensors
        self._thread = ThreadPoolExecutor(1)
        self._filled = self._thread.submit(fill)

    def missing(self) -> bool:
        """Whether `wait` has to wait."""
        return not self._filled.done()

    def wait(self) -> None:
        """Raises what prevents it."""
        self._filled.result()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()


def load_weights(manifest: Manifest, folder: Path, tensors: Tensors) -> Weights:
    """Begin to load the weights.

    Raises ArtifactError naming every file that cannot be read and every stored tensor that does not match, and
    MachineError where libtorch cannot start its threads.
    """
    check_threads(len(os.sched_getaffinity(0)))
    names = sorted({part.file for weight in manifest.weights.values() for part in weight.parts})
    files = {name: StoredFile(folder / name) for name in names}
    problems = [problem for name, spec in manifest.weights.items() if (problem := _mismatch(name, spec, files))]
    raise_all(ArtifactError, f"{folder}: weights do not match the manifest", problems)
    stored = {
        name: [files[part.file].tensors[part.tensor] for part in spec.parts] for name, spec in manifest.weights.items()
    }
    return _place(manifest, stored, tensors)


def _mismatch(name: str, spec: WeightSpec, files: dict[str, StoredFile]) -> str | None:
    shapes = []
    for part in spec.parts:
        if part.tensor not in files[part.file].tensors:
            return f"{name}: tensor {part.tensor} missing from {part.file}"
        shapes.append(files[part.file].tensors[part.tensor].shape)
    found = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    if found != list(spec.shape) or any(shape[1:] != shapes[0][1:] for shape in shapes):
        return f"{name}: stored shape {found}, expected {list(spec.shape)}"
    return None


def _place(manifest: Manifest, stored: dict[str, list[StoredTensor]], tensors: Tensors) -> Weights:
    weights: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}
    size = 0
    for name, spec in manifest.weights.items():
        if not tensors.on_gpu and len(stored[name]) == 1 and stored[name][0].dtype == spec.dtype:
            weights[name] = tensors.mapped(stored[name][0].memory, spec.shape, spec.dtype)
            continue
        offsets[name] = size
        count = math.prod(spec.shape) * ITEM_SIZES[spec.dtype]
        size += -(-count // _ALIGNMENT) * _ALIGNMENT
    buffer = tensors.empty((size,), "uint8")
    copies: list[tuple[Tensor, memoryview]] = []
    for name, offset in offsets.items():
        spec = manifest.weights[name]
        count = math.prod(spec.shape) * ITEM_SIZES[spec.dtype]
        weight = buffer[offset : offset + count]
        start = 0
        for part in stored[name]:
            memory = part.memory if part.dtype == spec.dtype else converted(part.memory, part.dtype, spec.dtype)
            copies.append((weight[start : start + memory.nbytes], memory))
            start += memory.nbytes
        weights[name] = tensors.reinterpreted(weight, spec.dtype).view(tuple(spec.shape))
    return Weights(weights, tensors.filling(copies))
