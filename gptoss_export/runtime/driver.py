"""The CUDA driver, by ctypes, for what torch has no call for: there is nothing to compile."""

from __future__ import annotations

import ctypes

from ..errors import RunError


def call(function: str, *arguments: object) -> None:
    """Call a function of libcuda. Raises RunError with its error number where it fails."""
    if error := getattr(ctypes.CDLL("libcuda.so.1"), function)(*arguments):
        raise RunError(f"CUDA driver: {function} failed with error {error}")


def version() -> int:
    """1000 times the major and 10 times the minor CUDA version that the driver knows."""
    found = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(found))
    return found.value
