"""GPU memory that is neither weights nor KV cache: settings of the process that need less of it
(docs/experiments.md)."""

from __future__ import annotations

import os


def set_small_workspaces() -> None:
    """Let cuBLAS take small workspaces, unless the environment sets some. Call it before the process uses CUDA, while
    no other thread may read the environment."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")  # two workspaces of 4,096 KiB
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "4096")
