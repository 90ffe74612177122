"""GPU memory that is neither weights nor KV cache, and how to need less of it.

Measured on an H200 (132 multiprocessors), MB:

    the context with CUDA's own stack of 1,024 bytes a thread    649     with none: 372
    cuBLAS with its own workspaces                               103     with 8 MB:  19
    the first stream that torch makes (it makes 32)               73     one alone:   2
"""

from __future__ import annotations

import ctypes
import os
import weakref

import torch

from .driver import call

_STACK_SIZE = 0  # CU_LIMIT_STACK_SIZE
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def spare_process() -> None:
    """Choose settings of the whole process that need less memory; before it has multiplied its first matrices.

    The stack limit is where threads begin: the driver raises it for a kernel that needs more, unless the
    kernel calls itself. cuBLAS gets workspaces of 8 MB, unless CUBLAS_WORKSPACE_CONFIG says otherwise.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")  # KiB
    torch.cuda.init()
    torch.cuda.current_stream().synchronize()  # makes the context the current one
    call("cuCtxSetLimit", _STACK_SIZE, ctypes.c_size_t(0))


def stream_for(owner: object) -> torch.cuda.Stream:
    """A stream that lives as long as its owner."""
    handle = ctypes.c_void_p()
    torch.cuda.current_stream().synchronize()
    call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
    weakref.finalize(owner, call, "cuStreamDestroy_v2", handle).atexit = False
    return torch.cuda.ExternalStream(handle.value)
