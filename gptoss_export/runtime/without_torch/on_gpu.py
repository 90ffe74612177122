"""Arrays in the memory of a GPU. All work is put on one stream, graphs are captured on another one."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, TypeVar

from ...cuda.driver import call, function
from ...cuda.early_launch import launch_early
from ...cuda.gpu import Gpu
from ...cuda.pinned import PinnedBuffer
from ...cuda.upload import Copy, upload
from ...errors import CaptureError, MachineError, RunError
from ...libtorch.graph_capture import CapturedGraph, GraphMemory, GraphPool
from ...libtorch.interface import Libtorch
from ..tensors import Captured, Fetched
from .array import Array
from .base import ArrayTensors, as_numpy

Result = TypeVar("Result")
_SMALL = 1 << 16  # bytes that the driver copies from ordinary memory without waiting for the GPU
_KEEP_FREED = 4  # CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
_LOCK = threading.RLock()  # libtorch captures one graph at a time in a process


class GpuArrays(ArrayTensors):
    """Arrays of one GPU."""

    on_gpu = True
    out_of_memory = CaptureError
    captures_at_first = True  # so that memory for a first call outside of a graph is never taken

    def __init__(self, loading: Future[Libtorch], gpu: Gpu) -> None:
        super().__init__(loading)
        self.gpu, self.gpu_index = gpu, gpu.index
        self._stream, self._capturing_stream = _streams(gpu)
        self._thread = threading.local()  # its `captures`: whether this thread captures
        self._pool: GraphPool | None = None  # of graphs that were given no other one
        self.pinned = PinnedBuffers(gpu)
        self._released: list[object] = []  # by other libraries, which may still read it
        with gpu.current():
            pool = ctypes.c_void_p()
            call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), gpu.index)
            call("cuMemPoolSetAttribute", pool, _KEEP_FREED, ctypes.byref(ctypes.c_uint64(64 << 20)))

    @property
    def stream(self) -> int:
        """That of this thread: the one that is captured, where the thread captures."""
        return self._capturing_stream if getattr(self._thread, "captures", False) else self._stream

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        size = Array(self, 0, shape, dtype, None).nbytes
        address = ctypes.c_uint64()
        call("cuMemAllocAsync", ctypes.byref(address), ctypes.c_size_t(max(size, 1)), ctypes.c_void_p(self.stream))
        return Array(self, address.value, shape, dtype, _Memory(address, self))

    def copy(self, to: int, source: int, size: int) -> None:
        call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size),
             ctypes.c_void_p(self.stream))  # fmt: skip

    def copy_from_host(self, to: int, source: int, size: int) -> None:
        if size <= _SMALL:
            self._copy_from_host(to, source, size)
            return
        buffer = self.pinned.take(size)
        ctypes.memmove(buffer.address, source, size)
        self._copy_from_host(to, buffer.address, size)
        buffer.record(self.stream)
        self.pinned.give_back(buffer)

    def fill(self, to: Array, value: float) -> None:
        stream, address = ctypes.c_void_p(self.stream), ctypes.c_uint64(to.data_ptr())
        if value == 0 or (value == -1 and to.dtype in ("int32", "int64")):
            byte = 0 if value == 0 else 0xFF
            call("cuMemsetD8Async", address, ctypes.c_ubyte(byte), ctypes.c_size_t(to.nbytes), stream)
        elif to.dtype in ("float32", "int32"):
            bits = ctypes.c_uint32.from_buffer(
                ctypes.c_float(value) if to.dtype == "float32" else ctypes.c_int32(int(value))
            )
            call("cuMemsetD32Async", address, bits, ctypes.c_size_t(to.size), stream)
        else:
            raise ValueError(f"{to} cannot be filled with {value}")

    def synchronize(self) -> None:
        with self.gpu.current():
            call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def release(self, owner: object) -> None:
        with _LOCK:
            self._released.append(owner)
            # Waiting for the GPU would spoil a capture, in which garbage may be collected.
            if not self._graphs.capturing:
                self.gpu.synchronize()
                self._released.clear()

    def fetch(self, tensors: Sequence[Any]) -> Fetched:
        with self.gpu.current():
            return _Copies(self, tensors)

    def mapped(self, memory: memoryview, shape: Sequence[int], dtype: str) -> Array:
        raise NotImplementedError("a GPU does not compute with memory of the host")

    def filler(self) -> Callable[[Sequence[Copy]], None]:
        return partial(upload, gpu=self.gpu, stream=self.stream)

    def capture(self, work: Callable[[], Result], pool: GraphPool | None = None) -> tuple[Captured, Result]:
        """Raises CaptureError where a program fails: it cannot say whether memory was too little."""
        with _LOCK:
            if pool is None:
                pool = self._pool = self._pool or self.new_pool()
            self._thread.captures = True
            try:
                graph, result = self._graphs.capture(work, self._capturing_stream, pool)
            except RunError as error:
                raise CaptureError(f"a capture failed ({error})") from error
            finally:
                self._thread.captures = False
            early = launch_early(graph.raw, self.gpu.capability)
            return Captured(_Replay(graph, self), early), result

    def new_pool(self) -> GraphPool:
        return self._graphs.pool_for(self)

    @property
    def _graphs(self) -> GraphMemory:
        return _graph_memory(self.libtorch, self.gpu.index)

    def free_memory(self) -> int:
        return self.gpu.memory()[0]

    def working(self) -> AbstractContextManager[None]:
        return self.gpu.current()

    def _copy_from_host(self, to: int, source: int, size: int) -> None:
        call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(to), ctypes.c_void_p(source), ctypes.c_size_t(size),
             ctypes.c_void_p(self.stream))  # fmt: skip


@cache
def _streams(gpu: Gpu) -> tuple[int, int]:
    """The streams of all runners of a GPU: libtorch keeps memory for each stream that has run matrix products."""
    return gpu.new_stream(), gpu.new_stream()


@cache
def _graph_memory(libtorch: Libtorch, gpu: int) -> GraphMemory:
    """That of all runners of a GPU."""
    return GraphMemory(libtorch, gpu)


class _Memory:
    """Memory of the GPU. It is given back when the stream has done what is on it now."""

    def __init__(self, address: ctypes.c_uint64, tensors: GpuArrays) -> None:
        weakref.finalize(self, _give_back, address, tensors.gpu, tensors.stream).atexit = False


def _give_back(address: ctypes.c_uint64, gpu: Gpu, stream: int) -> None:
    with gpu.current():
        call("cuMemFreeAsync", address, ctypes.c_void_p(stream))


class _Replay:
    """An instantiated graph."""

    def __init__(self, graph: CapturedGraph, tensors: GpuArrays) -> None:
        self._graph, self._tensors = graph, tensors  # the memory of the graph lives as long as this
        self._executable = ctypes.c_void_p()
        try:
            arguments = ctypes.byref(self._executable), ctypes.c_void_p(graph.raw), ctypes.c_uint64(0)
            call("cuGraphInstantiateWithFlags", *arguments)
        except MachineError as error:
            raise CaptureError(str(error)) from error
        self._launch = function("cuGraphLaunch")
        weakref.finalize(self, _destroy, self._executable, tensors.gpu).atexit = False

    def replay(self) -> None:
        if error := self._launch(self._executable, ctypes.c_void_p(self._tensors.stream)):
            raise RunError(f"CUDA driver: cuGraphLaunch failed with error {error}")


def _destroy(executable: ctypes.c_void_p, gpu: Gpu) -> None:
    with gpu.current():
        call("cuGraphExecDestroy", executable)  # the driver frees it when it no longer runs


class PinnedBuffers:
    """Pinned memory that is used again and again. Threads may share it."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._lock = gpu, threading.RLock()  # garbage may be collected in `take`
        self._idle: dict[int, deque[PinnedBuffer]] = {}

    def take(self, size: int) -> PinnedBuffer:
        """A buffer of at least `size` bytes that the GPU is done with."""
        rounded = max(1 << (size - 1).bit_length(), 1 << 12)
        with self._lock:
            idle = self._idle.setdefault(rounded, deque())
            if idle and idle[0].is_done():
                return idle.popleft()
        return PinnedBuffer(self._gpu, rounded)

    def give_back(self, buffer: PinnedBuffer) -> None:
        """Its event says when the GPU is done with it."""
        with self._lock:
            self._idle.setdefault(buffer.size, deque()).append(buffer)


class _Copies(Fetched):
    """Copies in one pinned buffer, which are complete after its event."""

    def __init__(self, tensors: GpuArrays, arrays: Sequence[Array]) -> None:
        self._gpu, self._kinds = tensors.gpu, [(found.shape, found.dtype, found.nbytes) for found in arrays]
        buffer = self._buffer = tensors.pinned.take(max(sum(found.nbytes for found in arrays), 1))
        # Also where nobody waits.
        self._give_back = weakref.finalize(self, tensors.pinned.give_back, buffer)
        self._give_back.atexit = False
        offset, stream = 0, ctypes.c_void_p(tensors.stream)
        for found in arrays:
            if found.nbytes:
                call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(buffer.address + offset),
                     ctypes.c_uint64(found.data_ptr()), ctypes.c_size_t(found.nbytes), stream)  # fmt: skip
            offset += found.nbytes
        buffer.record(tensors.stream)
        self._found: list[Any] | None = None

    def wait(self) -> list[Any]:
        if self._found is None:
            with self._gpu.current():
                self._buffer.wait()
            found, address = [], self._buffer.address
            for shape, dtype, size in self._kinds:
                found.append(as_numpy((ctypes.c_char * size).from_address(address), shape, dtype))
                address += size
            self._found = found
            self._give_back()
        return self._found
