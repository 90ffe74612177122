"""Settings of the process that need less GPU memory, where torch is imported."""

from __future__ import annotations

import torch

from ...cuda.gpu import gpu
from ...cuda.process_memory import set_small_workspaces


def reduce_process_memory() -> None:
    """Change settings of the whole process so that CUDA takes less GPU memory. Call it before the process uses CUDA."""
    set_small_workspaces()
    torch.cuda.synchronize()  # makes the context
    gpu(torch.cuda.current_device()).limit_stack()
