"""A program of static shapes that costs the host one launch: on CUDA it is captured into a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from .cuda.driver import own_stream
from .cuda.early_launch import launch_early


class StaticProgram(Protocol):
    """A program with its buffers. Calling it gives the outputs by name."""

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]: ...

    def __call__(self) -> dict[str, torch.Tensor]: ...


class CapturedProgram:
    """A program that replays a CUDA graph from its second call on.

    The first call runs as it is: a program that is needed once is not captured. On a CPU every call does. The outputs
    hold until the next call of any program of the same `pool`.

    pool  makes the memory that graphs share, whose programs never run at the same time
    """

    def __init__(self, program: StaticProgram, pool: Callable[[], Any]) -> None:
        # Declared first: attributes are freed in this order, and a graph must go before the code of its kernels.
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        self._program, self._pool = program, pool
        self._has_run = False

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        return self._program.inputs

    def __call__(self) -> dict[str, torch.Tensor]:
        device = next(iter(self.inputs.values())).device
        if device.type != "cuda" or not self._has_run:
            self._has_run = True
            return self._program()
        if self._graph is None:
            self._graph = self._capture(device)
        self._graph.replay()
        return self._outputs

    def _capture(self, device: torch.device) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(keep_graph=True), own_stream(device)
        torch.cuda.empty_cache()  # of what the first call has needed
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool())
            try:
                self._outputs = self._program()
            finally:
                graph.capture_end()
        launch_early(graph.raw_cuda_graph())
        graph.instantiate()
        return graph
