"""A program of static shapes that costs the host one launch: on CUDA it is captured into a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch

from .cuda.capture import Captured, capture


class StaticProgram(Protocol):
    """A program with its buffers. Calling it gives the outputs by name."""

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]: ...

    def __call__(self) -> dict[str, torch.Tensor]: ...


class CapturedProgram:
    """A program that replays a CUDA graph from its second call on.

    The first call runs as it is: a program that is needed once is not captured. On a CPU every call does, and on a GPU
    whose memory does not suffice for a capture too. The outputs hold until the next call of any program of the same
    `pool`.

    pool  makes the memory that graphs share, whose programs never run at the same time
    """

    def __init__(self, program: StaticProgram, pool: Callable[[], Any]) -> None:
        # Declared first: attributes are freed in this order, and a graph must go before the code of its kernels.
        self._captured: Captured | None = None
        self._outputs: dict[str, torch.Tensor] = {}
        self._program, self._pool = program, pool
        self._calls = 0  # that have run as they are

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        return self._program.inputs

    def __call__(self) -> dict[str, torch.Tensor]:
        device = next(iter(self.inputs.values())).device
        if self._calls == 1 and device.type == "cuda" and self._captured is None:
            self._capture(device)
        if self._captured is not None:
            self._captured.graph.replay()
            return self._outputs
        outputs = self._program()
        self._calls += 1  # a call that has failed does not count
        return outputs

    def _capture(self, device: torch.device) -> None:
        with suppress(torch.OutOfMemoryError):  # then this call and all later ones run as they are
            self._captured, self._outputs = capture(self._program, device, self._pool())
