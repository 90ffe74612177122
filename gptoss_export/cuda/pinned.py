"""Memory of the host that a GPU reads and writes by itself."""

from __future__ import annotations

import ctypes
import weakref
from types import TracebackType

from .driver import call, check, function
from .gpu import Gpu

_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_NOT_READY = 600  # CUDA_ERROR_NOT_READY


class PinnedBuffer:
    """`size` bytes of pinned memory, with an event after which the GPU is done with them.

    `record`, `wait` and `is_done` are called in the context of the GPU (`Gpu.current`). The memory is freed with this
    object, or at the end of a `with`.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.size, self.pointer, self._event = size, ctypes.c_void_p(), ctypes.c_void_p()
        with gpu.current():
            call("cuMemHostAlloc", ctypes.byref(self.pointer), ctypes.c_size_t(size), _PORTABLE)
            self._end = weakref.finalize(self, _free, gpu, self.pointer, self._event)
            self._end.atexit = False
            call("cuEventCreate", ctypes.byref(self._event), _NO_TIMING)

    @property
    def address(self) -> int:
        return self.pointer.value or 0

    @property
    def memory(self) -> memoryview:
        """All of it, as bytes. Nobody may keep this view longer than the buffer."""
        return memoryview((ctypes.c_ubyte * self.size).from_address(self.address)).cast("B")

    def record(self, stream: int) -> None:
        """What is on the stream now is what `wait` waits for."""
        call("cuEventRecord", self._event, ctypes.c_void_p(stream))

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        error = function("cuEventQuery")(self._event)
        if error != _NOT_READY:
            check("cuEventQuery", error)
        return error == 0

    def wait(self) -> None:
        call("cuEventSynchronize", self._event)

    def __enter__(self) -> PinnedBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _free(gpu: Gpu, pointer: ctypes.c_void_p, event: ctypes.c_void_p) -> None:
    with gpu.current():
        if event:
            call("cuEventDestroy_v2", event)
        call("cuMemFreeHost", pointer)
