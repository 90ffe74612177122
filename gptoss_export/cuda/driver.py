"""Calls of the CUDA driver, through ctypes. Nothing has to be compiled, and torch is not needed."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from ..errors import MachineError, RunError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
LIBRARY = "libcuda.so.1"


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise MachineError(f"{LIBRARY}: cannot be loaded ({error}); install NVIDIA's driver") from None


def function(name: str) -> Any:
    """A function of libcuda, which returns an error number, 0 for none. Raises MachineError where there is no driver or
    one that is too old."""
    try:
        return getattr(_library(), name)
    except AttributeError:
        raise MachineError(f"{LIBRARY}: has no {name}; install a newer driver of NVIDIA") from None


def call(name: str, *arguments: object) -> None:
    """Call a function of libcuda. Raises MachineError where GPU memory does not suffice, and RunError with the error
    number where it fails."""
    check(name, function(name)(*arguments))


def check(name: str, error: int) -> None:
    """Raise what `call` raises for a function's error number."""
    if error == _OUT_OF_MEMORY:
        raise MachineError(f"CUDA driver: {name}: too little GPU memory; end other programs that use it")
    if error:
        raise RunError(f"CUDA driver: {name} failed with error {error}")


def version() -> int:
    """The CUDA version of the driver: 1000 times the major number plus 10 times the minor number."""
    found = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(found))
    return found.value
