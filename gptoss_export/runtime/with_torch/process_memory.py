"""GPU memory that is neither weights nor KV cache: settings of the process that need less of it
(docs/experiments.md)."""

from __future__ import annotations

import ctypes
import os

import torch

from ...cuda.driver import call

_STACK_SIZE = 0  # CU_LIMIT_STACK_SIZE


def reduce_process_memory() -> None:
    """Change settings of the whole process so that CUDA takes less GPU memory. Call it before the process uses CUDA.

    It lowers CUDA's stack limit to 0, the stack that each thread has at first: the driver raises the limit for a
    kernel that needs more, unless the kernel is recursive. It sets small workspaces for cuBLAS, unless the
    environment sets some."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")  # two workspaces of 4,096 KiB
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")
    torch.cuda.synchronize()  # makes the context
    call("cuCtxSetLimit", _STACK_SIZE, ctypes.c_size_t(0))
