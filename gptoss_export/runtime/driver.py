"""The CUDA driver, by ctypes, for what torch has no call for: there is nothing to compile."""

from __future__ import annotations

import ctypes


def call(function: str, *arguments: object) -> None:
    """Call a function of libcuda. Raises RuntimeError with its error number where it fails."""
    if error := getattr(ctypes.CDLL("libcuda.so.1"), function)(*arguments):
        raise RuntimeError(f"CUDA driver: {function} failed with error {error}")
