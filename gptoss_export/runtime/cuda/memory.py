"""GPU memory that is neither weights nor KV cache, and how to need less of it.

Measured on an H200 (132 multiprocessors), MB:

    the context with CUDA's own stack of 1,024 bytes a thread    649     with none: 372
    cuBLAS with its own workspaces                               103     with 8 MB:  19
    the first stream that torch makes (it makes 32)               73     one alone:   2  (driver.py)
"""

from __future__ import annotations

import ctypes
import os

import torch

from .driver import call

_STACK_SIZE = 0  # CU_LIMIT_STACK_SIZE


def reduce_process_memory() -> None:
    """Choose settings of the whole process that need less memory; called before it uses CUDA.

    The stack limit is where threads begin: the driver raises it for a kernel that needs more, unless the
    kernel calls itself. What the environment already sets for cuBLAS stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")  # two of 4,096 KiB
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")
    torch.cuda.synchronize()  # makes the context
    call("cuCtxSetLimit", _STACK_SIZE, ctypes.c_size_t(0))
