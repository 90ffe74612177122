"""A program of static shapes that costs the host one launch: on CUDA it is captured into a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from .tensors import Captured, Tensor, Tensors


class StaticProgram(Protocol):
    """A program with its buffers. Calling it gives the outputs by name."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    def __call__(self) -> dict[str, Tensor]: ...


class CapturedProgram:
    """A program that replays a CUDA graph.

    Where a capture needs a call before it, the first call runs as it is, and the second one is captured: a program that
    is needed once is not captured. On a CPU every call runs as it is, and on a GPU whose memory does not suffice for a
    capture too. The outputs hold until the next call of any program of the same `pool`.

    pool  makes the memory that graphs share, whose programs never run at the same time
    """

    def __init__(self, program: StaticProgram, tensors: Tensors, pool: Callable[[], Any]) -> None:
        # Declared first: attributes are freed in this order, and a graph must go before the code of its kernels.
        self._captured: Captured | None = None
        self._outputs: dict[str, Tensor] = {}
        self._program, self._tensors, self._pool = program, tensors, pool
        self._waits_for = 0 if tensors.captures_at_first else 1  # calls before the one that is captured
        self._calls = 0  # that have run as they are

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return self._program.inputs

    def capture(self) -> None:
        """Capture it now, unless it was captured before. Where memory does not suffice, all calls run as they are."""
        if self._tensors.on_gpu and self._captured is None:
            with suppress(self._tensors.out_of_memory):
                self._captured, self._outputs = self._tensors.capture(self._program, self._pool())

    def __call__(self) -> dict[str, Tensor]:
        if self._calls == self._waits_for:
            self.capture()
        if self._captured is not None:
            self._captured.graph.replay()
            return self._outputs
        outputs = self._program()
        self._calls += 1  # a call that has failed does not count
        return outputs
