"""Calls of the CUDA driver, through ctypes, for which torch has no function. Nothing has to be compiled."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from ...errors import RunError


def call(function: str, *arguments: object) -> None:
    """Call a function of libcuda. Raises RunError with the error number where it fails."""
    if error := getattr(ctypes.CDLL("libcuda.so.1"), function)(*arguments):
        raise RunError(f"CUDA driver: {function} failed with error {error}")


def version() -> int:
    """The CUDA version of the driver: 1000 times the major number plus 10 times the minor number."""
    found = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(found))
    return found.value


_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@cache
def own_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device besides the default one, for capturing graphs and for work that must not run on the default
    one.

    torch makes 32 streams when it makes its first, and they take GPU memory (docs/experiments.md). This stream is never
    destroyed, because the memory of graphs is bound to it.
    """
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        return torch.cuda.ExternalStream(handle.value)
