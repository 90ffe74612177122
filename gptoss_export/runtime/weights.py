"""Loads the weights: from the artifact's safetensors files to the device.

On a CPU a weight that is stored whole, and in the dtype that the programs want, is used where it is mapped.
Everything else is copied into one allocation: weights fragment no memory and all have the same alignment.

Where ranks share the model, a rank loads its slices of each weight (rank_slices.py)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ..artifact.manifest import Manifest, WeightSpec
from ..errors import ArtifactError, raise_all
from ..host_memory import HostBytes, Source
from ..machine_limits import check_threads
from ..model.dtypes import ITEM_SIZES
from ..model.parameters import PLACES, Parameter, parameters
from ..model.ranks import RankConfig
from .dtype_conversion import converted
from .rank_slices import StoredColumns, stored_slices
from .stored_tensors import StoredFile, StoredTensor
from .tensors import Tensor, Tensors

_BLOCK = 4 << 20  # numbers that are converted at once
_ALIGNMENT = 256  # bytes; compiled CUDA code clones inputs that are not aligned to 16


class Weights:
    """Every weight by name, with the shape and dtype of the manifest, on its way to the device.

    tensors  where the weights are; their contents are there after `wait`

    The end of a `with` waits for them too, also after an error.
    """

    def __init__(self, tensors: dict[str, Tensor], fill: Callable[[], None]) -> None:
        self.tensors = tensors
        self._thread = ThreadPoolExecutor(1)
        self._filled = self._thread.submit(fill)

    def on_their_way(self) -> bool:
        """Whether `wait` would have to wait."""
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


def load_weights(manifest: Manifest, folder: Path, tensors: Tensors, places: Sequence[int] = ()) -> Weights:
    """Begin to load the weights.

    manifest  what the rank runs (`Manifest.of_rank`)
    places    where ranks share the model: model/places.py

    Raises ArtifactError naming every file that cannot be read and every stored tensor that does not match, and
    MachineError where libtorch cannot start its threads.
    """
    check_threads(_threads())
    names = sorted({part.file for weight in manifest.weights.values() for part in weight.parts})
    files = {name: StoredFile(folder / name) for name in names}
    problems = [problem for name, spec in manifest.weights.items() if (problem := _mismatch(name, spec, files))]
    raise_all(ArtifactError, f"{folder}: weights do not match the manifest", problems)
    stored = {
        name: [files[part.file].tensors[part.tensor] for part in spec.parts] for name, spec in manifest.weights.items()
    }
    return _place(manifest, {name: _of_rank(manifest, name, found) for name, found in stored.items()}, tensors, places)


def _of_rank(manifest: Manifest, name: str, stored: list[StoredTensor]) -> list[StoredTensor | StoredColumns]:
    """What the rank has of a weight that is made of these stored tensors."""
    config = manifest.model
    if not isinstance(config, RankConfig):
        return list(stored)
    return stored_slices(stored, config.slices(name, manifest.weights[name].shape))


def _threads() -> int:
    """How many threads the OpenMP library of libtorch starts."""
    if (torch := sys.modules.get("torch")) is not None:
        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def _mismatch(name: str, spec: WeightSpec, files: dict[str, StoredFile]) -> str | None:
    shapes = []
    for part in spec.parts:
        if part.tensor not in files[part.file].tensors:
            return f"{name}: tensor {part.tensor} missing from {part.file}"
        shapes.append(files[part.file].tensors[part.tensor].shape)
    if not all(shapes):
        return f"{name}: stored as a single number, expected {list(spec.shape)}"
    found = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    if found != list(spec.shape) or any(shape[1:] != shapes[0][1:] for shape in shapes):
        return f"{name}: stored shape {found}, expected {list(spec.shape)}"
    return None


def _place(
    manifest: Manifest, stored: dict[str, list[StoredTensor | StoredColumns]], tensors: Tensors, places: Sequence[int]
) -> Weights:
    weights: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}
    size = 0
    specs: dict[str, WeightSpec | Parameter] = dict(manifest.weights)
    if isinstance(manifest.model, RankConfig):
        specs = {item.name: item for item in parameters(manifest.model, manifest.dtype) if item.name != PLACES}
        weights[PLACES] = tensors.numbers(places)
    for name, spec in specs.items():
        first = stored[name][0] if len(stored[name]) == 1 else None
        if not tensors.on_gpu and isinstance(first, StoredTensor) and first.dtype == spec.dtype:
            weights[name] = tensors.mapped(first.memory, spec.shape, spec.dtype)
            continue
        offsets[name] = size
        count = math.prod(spec.shape) * ITEM_SIZES[spec.dtype]
        size += -(-count // _ALIGNMENT) * _ALIGNMENT
    buffer = tensors.empty((size,), "uint8")
    pieces: list[_Piece] = []
    for name, offset in offsets.items():
        spec = specs[name]
        count = math.prod(spec.shape) * ITEM_SIZES[spec.dtype]
        weight = buffer[offset : offset + count]
        start = 0
        if not stored[name]:
            weight.fill_(0)
        for part in stored[name]:
            size = math.prod(part.shape) * ITEM_SIZES[spec.dtype]
            pieces.append(_Piece(weight[start : start + size], part, spec.dtype))
            start += size
        weights[name] = tensors.reinterpreted(weight, spec.dtype).view(tuple(spec.shape))
    return Weights(weights, partial(_fill, tensors.filler(), pieces))


class _Piece(NamedTuple):
    """A stored tensor, and the memory [n] uint8 on the device that it fills with numbers of a dtype."""

    to: Tensor
    stored: StoredTensor | StoredColumns
    dtype: str


def _fill(fill: Callable[[Sequence[tuple[Tensor, Source]]], None], pieces: Sequence[_Piece]) -> None:
    fill([(piece.to, piece.stored) for piece in pieces if piece.stored.dtype == piece.dtype])
    for piece in pieces:
        if piece.stored.dtype != piece.dtype:
            # In blocks: a whole one would take the memory of a matrix once more.
            of, to = _BLOCK * ITEM_SIZES[piece.stored.dtype], _BLOCK * ITEM_SIZES[piece.dtype]
            for index in range(-(-piece.stored.nbytes // of)):
                block = memoryview(bytearray(min(of, piece.stored.nbytes - index * of)))
                piece.stored.read(index * of, block)
                numbers = HostBytes(converted(block, piece.stored.dtype, piece.dtype))
                fill([(piece.to[index * to : (index + 1) * to], numbers)])
