"""Memory of the host by its address."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol


class Memory(Protocol):
    """A tensor of any library."""

    @property
    def nbytes(self) -> int: ...

    def data_ptr(self) -> int: ...


def copy_from_host(copies: Sequence[tuple[Memory, memoryview]]) -> None:
    """Fill tensors on a CPU with memory of the host, byte by byte."""
    for tensor, memory in copies:
        if tensor.nbytes != memory.nbytes:
            raise ValueError(f"{tensor.nbytes} bytes cannot be filled with {memory.nbytes}")
        ctypes.memmove(tensor.data_ptr(), address_of(memory), memory.nbytes)


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
