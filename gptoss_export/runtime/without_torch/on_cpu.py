"""Arrays in the memory of the host."""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ...host_memory import Source, copy_from_host
from ..tensors import CELLS, Captured, Fetched, Tensor
from .array import Array
from .base import ArrayTensors, as_numpy

Result = TypeVar("Result")
_ALIGNMENT = 64  # bytes, which the widest vectors of a CPU want
_LARGE = 1 << 16  # bytes from which on memory comes from the system, which gives it when it is first written


class CpuArrays(ArrayTensors):
    """Arrays of the host. Everything is done when a call returns."""

    on_gpu = False

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        made = Array(self, 0, shape, dtype, None)
        if made.nbytes >= _LARGE:
            owner: Any = mmap.mmap(-1, made.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            begin = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        else:
            owner = ctypes.create_string_buffer(made.nbytes + _ALIGNMENT)
            begin = ctypes.addressof(owner)
        return Array(self, begin + -begin % _ALIGNMENT, shape, dtype, owner)

    def copy(self, to: int, source: int, size: int) -> None:
        ctypes.memmove(to, source, size)

    def copy_from_host(self, to: int, source: int, size: int) -> None:
        ctypes.memmove(to, source, size)

    def fill(self, to: Array, value: float) -> None:
        if value == 0:
            ctypes.memset(to.data_ptr(), 0, to.nbytes)
        else:
            self.write(to, array(CELLS[to.dtype], [value]) * to.size)

    def synchronize(self) -> None:
        pass

    def release(self, owner: object) -> None:
        pass

    def fetch(self, tensors: Sequence[Any]) -> Fetched:
        return _Copies(tensors)

    def filler(self) -> Callable[[Sequence[tuple[Tensor, Source]]], None]:
        return copy_from_host

    def capture(self, work: Callable[[], Result], pool: Any = None) -> tuple[Captured, Result]:
        raise NotImplementedError("a CPU has no graphs")

    def new_pool(self) -> Any:
        raise NotImplementedError("a CPU has no graphs")

    def free_memory(self) -> int:
        raise NotImplementedError("the caller chooses how much memory of the host it takes")

    @contextmanager
    def working(self) -> Iterator[None]:
        yield


class _Copies(Fetched):
    def __init__(self, arrays: Sequence[Array]) -> None:
        self._found = [
            as_numpy((ctypes.c_char * found.nbytes).from_address(found.data_ptr()), found.shape, found.dtype)
            if found.size
            else as_numpy(b"", found.shape, found.dtype)
            for found in arrays
        ]

    def wait(self) -> list[Any]:
        return self._found
