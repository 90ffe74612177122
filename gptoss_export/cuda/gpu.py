"""A GPU as the driver has it: its context, its streams, its memory."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from ..errors import MachineError, RunError
from .driver import call

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_
_STACK_SIZE = 0  # CU_LIMIT_STACK_SIZE
_NAME = 256


class Gpu:
    """GPU number `index` of those that the process sees. Its context is the one that torch uses too."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._device, self._context, self._lock = ctypes.c_int(), ctypes.c_void_p(), threading.Lock()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(self._device), index)

    @property
    def capability(self) -> tuple[int, int]:
        """Such as (9, 0)."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    @property
    def name(self) -> str:
        found = ctypes.create_string_buffer(_NAME)
        call("cuDeviceGetName", found, _NAME, self._device)
        return found.value.decode()

    def reaches(self, other: Gpu) -> bool:
        """Whether it can read and write the memory of another GPU."""
        found = ctypes.c_int()
        call("cuDeviceCanAccessPeer", ctypes.byref(found), self._device, other._device)
        return bool(found.value)

    def open(self) -> None:
        """Make the context, which takes some tenths of a second the first time."""
        with self._lock:
            if not self._context:
                call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    @contextmanager
    def current(self) -> Iterator[None]:
        """In this context, calls of the driver by this thread are for this GPU."""
        if not self._context:
            self.open()
        call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all of them."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.current():
            call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def limit_stack(self) -> None:
        """Reserve no memory for stacks beyond what each thread has at first: the driver raises the limit for a kernel
        that needs more, unless the kernel is recursive."""
        with self.current():
            call("cuCtxSetLimit", _STACK_SIZE, ctypes.c_size_t(0))

    def synchronize(self) -> None:
        """Wait until the GPU has done everything."""
        with self.current():
            call("cuCtxSynchronize")

    def new_stream(self) -> int:
        """A stream that waits for no other one."""
        made = ctypes.c_void_p()
        with self.current():
            call("cuStreamCreate", ctypes.byref(made), _NON_BLOCKING)
        return made.value or 0

    def _attribute(self, number: int) -> int:
        found = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(found), number, self._device)
        return found.value


@cache
def gpu(index: int) -> Gpu:
    """The one object of a GPU: its context is retained once."""
    return Gpu(index)


def all_gpus() -> list[Gpu]:
    """All that the process sees; none where there is no driver."""
    count = ctypes.c_int()
    with suppress(MachineError, RunError):
        call("cuInit", 0)
        call("cuDeviceGetCount", ctypes.byref(count))
    return [gpu(index) for index in range(count.value)]


def current_gpu() -> Gpu | None:
    """torch's current GPU where the process has imported torch, else the first that it sees. None where there is no
    GPU, or no driver."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return gpu(torch.cuda.current_device()) if torch.cuda.is_available() else None
    with suppress(MachineError, RunError):
        return gpu(0)
    return None
