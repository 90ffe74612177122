"""Memory that the GPUs of several processes read and write."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable

from .driver import call
from .gpu import Gpu

_HANDLE = 64  # CU_IPC_HANDLE_SIZE
_ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_PORTABLE_AND_MAPPED = 1 | 2  # CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_DEVICEMAP


class _Handle(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char * _HANDLE)]


class GpuMemory:
    """`size` bytes of zeros in the memory of a GPU, which other processes can open. Freed with this object."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        found = ctypes.c_uint64()
        with gpu.current():
            call("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(size))
            self._end = _at_end(self, gpu, lambda: call("cuMemFree_v2", found))
            call("cuMemsetD8_v2", found, ctypes.c_ubyte(0), ctypes.c_size_t(size))
            call("cuCtxSynchronize")  # others write here as soon as they know the address
        self.address, self._gpu = found.value, gpu

    @property
    def handle(self) -> bytes:
        """What another process opens it by."""
        made = _Handle()
        with self._gpu.current():
            call("cuIpcGetMemHandle", ctypes.byref(made), ctypes.c_uint64(self.address))
        return bytes(made)


class OpenedMemory:
    """GpuMemory of another process, as `gpu` reaches it. Closed with this object."""

    def __init__(self, gpu: Gpu, handle: bytes) -> None:
        found = ctypes.c_uint64()
        with gpu.current():
            opened = _Handle.from_buffer_copy(handle)
            call("cuIpcOpenMemHandle_v2", ctypes.byref(found), opened, ctypes.c_uint(_ENABLE_PEER_ACCESS))
        self._end = _at_end(self, gpu, lambda: call("cuIpcCloseMemHandle", found))
        self.address = found.value


class HostMemory:
    """Mapped memory of the host, as `gpu` reaches it. Nobody may end the mapping before this object."""

    def __init__(self, gpu: Gpu, memory: mmap.mmap) -> None:
        start, found = ctypes.addressof(ctypes.c_char.from_buffer(memory)), ctypes.c_uint64()
        with gpu.current():
            size = ctypes.c_size_t(len(memory))
            call("cuMemHostRegister_v2", ctypes.c_void_p(start), size, ctypes.c_uint(_PORTABLE_AND_MAPPED))
            self._end = _at_end(self, gpu, lambda: call("cuMemHostUnregister", ctypes.c_void_p(start)))
            call("cuMemHostGetDevicePointer_v2", ctypes.byref(found), ctypes.c_void_p(start), ctypes.c_uint(0))
        self.address, self._memory = found.value, memory


def _at_end(owner: object, gpu: Gpu, work: Callable[[], None]) -> weakref.finalize:
    """`work` when the owner is dropped; not at the end of the process, which frees everything."""

    def finish() -> None:
        with gpu.current():
            work()

    found = weakref.finalize(owner, finish)
    found.atexit = False
    return found
