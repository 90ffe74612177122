"""Captures work into a CUDA graph whose kernels are launched early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

from ...cuda.early_launch import launch_early
from ...cuda.gpu import gpu
from ..tensors import Captured

Result = TypeVar("Result")

# torch captures one graph at a time in a process, on the one stream that all runners share for it.
CAPTURING = threading.RLock()


@cache
def own_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device besides the default one, for capturing graphs and for work that must not run on the default
    one.

    torch makes 32 streams when it makes its first, and they take GPU memory (docs/experiments.md). This stream is never
    destroyed, because the memory of graphs is bound to it.
    """
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        return torch.cuda.ExternalStream(gpu(torch.cuda.current_device()).new_stream())


def capture(work: Callable[[], Result], device: torch.device, pool: Any = None) -> tuple[Captured, Result]:
    """Capture `work`, which has run before: code is loaded and memory has been allocated then. Its results are those of
    each replay.

    pool  the memory of another graph, to share it; the two must never run at the same time

    Other threads may call CUDA meanwhile. Raises what `work` raises.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with CAPTURING:
        torch.cuda.empty_cache()  # of what the first call has needed
        stream = own_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            arguments = {} if pool is None else {"pool": pool}
            graph.capture_begin(**arguments, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                _abandon(graph)
                raise
            graph.capture_end()
        early = launch_early(graph.raw_cuda_graph(), torch.cuda.get_device_capability(device))
        graph.instantiate()
    return Captured(graph, early), result


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture that has failed."""
    with suppress(RuntimeError):  # which says that it has failed
        graph.capture_end()
