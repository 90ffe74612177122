"""The CUDA driver, by ctypes, for what torch has no call for: there is nothing to compile."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from ...errors import RunError


def call(function: str, *arguments: object) -> None:
    """Call a function of libcuda. Raises RunError with its error number where it fails."""
    if error := getattr(ctypes.CDLL("libcuda.so.1"), function)(*arguments):
        raise RunError(f"CUDA driver: {function} failed with error {error}")


def version() -> int:
    """1000 times the major and 10 times the minor CUDA version that the driver knows."""
    found = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(found))
    return found.value


_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@cache
def own_stream(device: torch.device) -> torch.cuda.Stream:
    """The process's one stream besides the default one, for recording graphs and for what must not run on that.

    torch's first stream makes 32 of them, which take 73 MB of an H200's memory; this one takes 2. It is never
    destroyed: memory of graphs is bound to it.
    """
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        return torch.cuda.ExternalStream(handle.value)
