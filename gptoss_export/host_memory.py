"""Memory of the host by its address, and bytes that tensors are filled with."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Memory(Protocol):
    """A tensor of any library."""

    @property
    def nbytes(self) -> int: ...

    def data_ptr(self) -> int: ...


class Source(Protocol):
    """Bytes of the host: memory, or a file. Those that have `memory` lie there, or are mapped there, in one piece."""

    @property
    def nbytes(self) -> int: ...

    def read(self, start: int, to: memoryview) -> None:
        """Fill `to` with the bytes from `start` on. Several threads call it at the same time."""


@dataclass(frozen=True)
class HostBytes:
    """Bytes in memory."""

    memory: memoryview

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def read(self, start: int, to: memoryview) -> None:
        to[:] = self.memory[start : start + to.nbytes]


def copy_from_host(copies: Sequence[tuple[Memory, Source]]) -> None:
    """Fill tensors on a CPU with bytes of the host."""
    for tensor, source in copies:
        if tensor.nbytes != source.nbytes:
            raise ValueError(f"{tensor.nbytes} bytes cannot be filled with {source.nbytes}")
        if (memory := getattr(source, "memory", None)) is not None:
            ctypes.memmove(tensor.data_ptr(), address_of(memory), source.nbytes)
        else:
            source.read(0, memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B"))


def address_of(memory: memoryview) -> int:
    """Where memory of the host lies. It may be read only."""
    found = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(found), 0)
    address = found.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return address or 0


class _Buffer(ctypes.Structure):
    """Py_buffer of CPython, whose first member is the address."""

    _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 128)]
