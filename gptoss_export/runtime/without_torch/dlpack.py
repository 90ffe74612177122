"""Gives an array to another library without a copy: the DLPack protocol, by which torch, CuPy, JAX and numpy take
tensors.

Source: dlpack.h of DLPack 0.8 (DLManagedTensor), and the Python specification of `__dlpack__`. The struct is kept until
its reader says that it is done, from any thread.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

_CPU, _CUDA = 1, 2  # kDLCPU, kDLCUDA
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}  # kDLInt, kDLUInt, kDLFloat, kDLBfloat
_NAME = b"dltensor"  # of a capsule that nobody has read; a reader renames it


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", _Device), ("ndim", ctypes.c_int32), ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_GIVEN: dict[int, tuple[Any, ...]] = {}  # by the address of the struct: what it refers to, and what follows its end
_python = ctypes.pythonapi
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_python.PyCapsule_GetPointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _done(
    address: int, given: dict[int, tuple[Any, ...]] = _GIVEN, ending: Callable[[], bool] = sys.is_finalizing
) -> None:
    """A reader is done."""
    if not ending():
        *_, owner, release = given.pop(address)
        release(owner)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _forgotten(capsule: int, python: Any = _python, name: bytes = _NAME, done: Callable[[int], None] = _done) -> None:
    """A capsule is deleted. If nobody has read it, nobody else says that its memory is not needed."""
    if python.PyCapsule_IsValid(capsule, name):
        done(python.PyCapsule_GetPointer(capsule, name))


for _callback in (_done, _forgotten):  # readers may call them when the process ends, after the modules have gone
    _python.Py_IncRef(ctypes.py_object(_callback))


def capsule(
    address: int, shape: Sequence[int], dtype: str, gpu: int | None, owner: object, release: Callable[[object], None]
) -> Any:
    """The capsule of contiguous memory.

    gpu      the number of its GPU, None for the host
    owner    what keeps the memory
    release  is called with the owner when the reader is done
    """
    kind = dtype.rstrip("0123456789")
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    managed.tensor = _Tensor(
        address, device(gpu), len(shape), _DataType(_CODES[kind], int(dtype.removeprefix(kind)), 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)), None, 0,
    )  # fmt: skip
    managed.deleter = ctypes.cast(_done, ctypes.c_void_p)
    at = ctypes.addressof(managed)
    _GIVEN[at] = (managed, sizes, owner, release)
    return _python.PyCapsule_New(at, _NAME, ctypes.cast(_forgotten, ctypes.c_void_p))


def device(gpu: int | None) -> _Device:
    return _Device(_CPU, 0) if gpu is None else _Device(_CUDA, gpu)
