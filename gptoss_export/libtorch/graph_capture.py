"""Captures what programs launch into a CUDA graph, with memory that the graph keeps.

Programs take their memory from libtorch's allocator. While a graph is captured it must come from a pool of the graph's
own: otherwise the allocator would give it to others afterwards, and a replay would write over theirs. The C interface
has no function for that. at::cuda::CUDAGraph has: so its methods are called by their C++ names (Itanium ABI). They are
those of torch 2.11 to 2.15; where one is missing, capturing is refused. Source: ATen/cuda/CUDAGraph.h.

The methods may raise C++ exceptions, which would end the process. So what can fail for lack of memory, instantiating
and launching, is left to the driver.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..cuda.driver import call
from ..errors import MachineError, RunError
from ..lending import Lending
from .interface import Libtorch, declared_functions

Result = TypeVar("Result")
_SIZE = 4096  # bytes for an object of the class, which has some hundred
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: loading code is allowed meanwhile, in all threads
_ACTIVE = 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE
_CLASS = "_ZN2at4cuda9CUDAGraph"


class Pool(ctypes.Structure):
    """The name of a memory pool (c10::MempoolId_t)."""

    _fields_ = [("first", ctypes.c_ulonglong), ("second", ctypes.c_ulonglong)]


_METHODS: dict[str, tuple[tuple[Any, ...], Any]] = {
    f"{_CLASS}C1Eb": ((ctypes.c_void_p, ctypes.c_bool), None),
    f"{_CLASS}D1Ev": ((ctypes.c_void_p,), None),
    f"{_CLASS}13capture_beginESt4pairIyyE21cudaStreamCaptureMode": ((ctypes.c_void_p, Pool, ctypes.c_int), None),
    f"{_CLASS}11capture_endEv": ((ctypes.c_void_p,), None),
    f"{_CLASS}14raw_cuda_graphEv": ((ctypes.c_void_p,), ctypes.c_void_p),
    "_ZN2at4cuda17graph_pool_handleEv": ((), Pool),
}
_CONSTRUCT, _DESTROY, _BEGIN, _END, _RAW, _NEW_POOL = _METHODS


class GraphPool:
    """Memory of graphs that never run at the same time.

    libtorch gives a pool's memory to others only when memory does not suffice, and it forgets a pool with the last
    graph. So the first graph is kept as long as the pool, which graphs of a later runner can use then.
    """

    def __init__(self, name: Pool) -> None:
        self.name = name
        self.first: CapturedGraph | None = None


class GraphMemory:
    """Captures graphs on GPU number `gpu`. Raises MachineError where libtorch's class is not the expected one.

    capturing  whether a capture is under way
    """

    def __init__(self, library: Libtorch, gpu: int) -> None:
        if library.cuda is None:
            raise MachineError("libtorch: was loaded without its library for CUDA")
        self._functions = library.cuda.functions
        self._methods = declared_functions(library.cuda.library, _METHODS, library.installation.version)
        self._gpu = gpu
        self._pools: Lending[GraphPool] = Lending()
        self._broken: list[CapturedGraph] = []  # libtorch still refers to them
        self.capturing = False

    def pool_for(self, user: object) -> GraphPool:
        """A pool that no other user has. `user` ends after its graphs."""
        return self._pools.lend(user, self._gpu, lambda: GraphPool(self._methods[_NEW_POOL]()))

    def capture(self, work: Callable[[], Result], stream: int, pool: GraphPool) -> tuple[CapturedGraph, Result]:
        """Capture what `work` puts on a stream. One thread captures at a time.

        Raises what `work` raises, and MachineError where another call has spoilt a capture: libtorch cannot end it, so
        that this process captures no more.
        """
        if self._broken:
            raise MachineError("CUDA: an earlier capture was spoilt by another call; start the process again")
        functions, guard = self._functions, ctypes.c_void_p()
        functions.call("aoti_torch_create_cuda_stream_guard", stream, self._gpu, ctypes.byref(guard))
        try:
            graph = CapturedGraph(self._methods)
            self._methods[_BEGIN](graph.address, pool.name, _RELAXED)
            self.capturing, done = True, False
            try:
                result = work()
                done = True
            finally:
                self.capturing = False
                self._finish(graph, stream)
                if done:
                    pool.first = pool.first or graph
                elif pool.first is None:  # libtorch forgets the pool, and can give its memory to others
                    pool.name = self._methods[_NEW_POOL]()
        finally:
            functions.call("aoti_torch_delete_cuda_stream_guard", guard)
        return graph, result

    def _finish(self, graph: CapturedGraph, stream: int) -> None:
        """End a capture. Raises MachineError where it is not valid any more: then libtorch's own way would end the
        process."""
        status = ctypes.c_int()
        call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        if status.value == _ACTIVE:
            self._methods[_END](graph.address)
            return
        graph.keep_forever()
        self._broken.append(graph)
        with suppress(RunError, MachineError):  # which says that it is not valid
            call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(ctypes.c_void_p()))
        raise MachineError("CUDA: another call has spoilt a capture; start the process again")


class CapturedGraph:
    """A captured graph. Its memory is given back to the pool with this object and the results.

    address  of the C++ object
    """

    def __init__(self, methods: dict[str, Callable[..., Any]]) -> None:
        self._methods = methods
        self._memory = ctypes.create_string_buffer(_SIZE + 64)
        begin = ctypes.addressof(self._memory)
        self.address = begin + -begin % 64
        methods[_CONSTRUCT](self.address, True)
        self._end = weakref.finalize(self, _destroy, methods[_DESTROY], self.address, self._memory)
        self._end.atexit = False

    @property
    def raw(self) -> int:
        """The CUgraph."""
        return self._methods[_RAW](self.address) or 0

    def keep_forever(self) -> None:
        """Leave the C++ object as it is, since it cannot be ended."""
        self._end.detach()


def _destroy(destroy: Callable[..., Any], address: int, memory: object) -> None:
    """memory: what the object lies in, which lives as long as it."""
    destroy(address)
