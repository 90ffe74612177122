"""Programs of a rank on a CPU, with torch's tensors.

A collective waits for other ranks, in a thread of gloo that may need Python's lock. torch's own loader keeps that lock
while a program runs: both would wait for ever. So the programs are called through libtorch's C interface, which ctypes
does without the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_not
from pathlib import Path
from typing import Any

import torch

from ...artifact.manifest import Manifest
from ...libtorch.program import Program
from ...model.dtypes import dtype_name
from ...runtime.mapped_files import MappedFiles
from ...runtime.tensors import LoadedProgram
from ...runtime.with_torch.tensors import TorchTensors
from ...runtime.without_torch.array import Array
from ...runtime.without_torch.base import ArrayTensors
from .opened_package import OpenedPackage
from .without_torch import LibtorchPackage


class CollectivePackage(OpenedPackage):
    """The package of a rank, for the CPU."""

    def __init__(self, manifest: Manifest, folder: Path, arch: str) -> None:
        self._package = LibtorchPackage(manifest, folder, arch, tune_process=False)
        self.tensors = TorchTensors(torch.device("cpu"))

    def programs(self, mapped: MappedFiles) -> dict[str, LoadedProgram]:
        opened = self._package.opened_programs()
        return {name: _Called(program, self._package.tensors, mapped) for name, program in opened.items()}


class _Called:
    """Calling it runs a program."""

    def __init__(self, program: Program, arrays: ArrayTensors, mapped: MappedFiles) -> None:
        self._program, self._arrays, self._mapped = program, arrays, mapped
        self._last: tuple[list[torch.Tensor], list[Array]] = [], []  # most calls have the same tensors

    def __call__(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        self._mapped.check()
        tensors, arrays = self._last
        if len(tensors) != len(inputs) or any(map(is_not, tensors, inputs)):
            arrays = [Array(self._arrays, t.data_ptr(), t.shape, dtype_name(t.dtype), t) for t in inputs]
            self._last = list(inputs), arrays
        results = self._program.run([array.handle for array in arrays], None)
        return [torch.from_dlpack(Array.of_handle(self._arrays, handle)) for handle in results]
