"""Captures what programs launch into a CUDA graph, with memory that the graph keeps.

Programs take their memory from libtorch's allocator. While a graph is captured it must come from a pool of the graph's
own: otherwise the allocator would give it to others afterwards, and a replay would write over theirs. The C interface
has no function for that. at::cuda::CUDAGraph has: so its methods are called by their C++ names (Itanium ABI). They are
those of torch 2.11 to 2.15; where one is missing, capturing is refused. Source: ATen/cuda/CUDAGraph.h.

The methods may raise C++ exceptions, which would end the process. So they do nothing here that can fail for lack of
memory: instantiating and launching are calls of the driver.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import MachineError
from .interface import Libtorch

Result = TypeVar("Result")
_SIZE = 4096  # bytes for an object of the class, which has some hundred
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: loading code is allowed meanwhile, in all threads
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


class GraphMemory:
    """Captures graphs on GPU number `gpu`, which share one pool: no two of them must ever run at the same time.

    The allocator gives a pool's memory to others only when memory does not suffice, and can use a pool no more once its
    last graph has gone. So the first graph stays, and with it a pool for all that follow.

    Raises MachineError where libtorch's class is not the expected one.
    """

    def __init__(self, library: Libtorch, gpu: int) -> None:
        if library.cuda is None:
            raise MachineError("libtorch: was loaded without its library for CUDA")
        found, self._functions = library.cuda.library, library.cuda.functions
        missing = [name for name in _METHODS if not hasattr(found, name)]
        if missing:
            raise MachineError(
                f"torch {library.installation.version}: has no {', '.join(missing)}; install another version of torch"
            )
        self._methods: dict[str, Callable[..., Any]] = {}
        for name, (arguments, result) in _METHODS.items():
            method = getattr(found, name)
            method.argtypes, method.restype = arguments, result
            self._methods[name] = method
        self._gpu = gpu
        self._pool = self._methods[_NEW_POOL]()
        self._first: CapturedGraph | None = None

    def capture(
        self, work: Callable[[], Result], stream: int, is_capturing: Callable[[int], bool]
    ) -> tuple[CapturedGraph, Result]:
        """Capture what `work` puts on a stream. One thread captures at a time. Raises what `work` raises.

        is_capturing  whether a stream is in a capture that is valid
        """
        functions, guard = self._functions, ctypes.c_void_p()
        functions.call("aoti_torch_create_cuda_stream_guard", stream, self._gpu, ctypes.byref(guard))
        try:
            graph = CapturedGraph(self._methods)
            self._methods[_BEGIN](graph.address, self._pool, _RELAXED)
            self._first = self._first or graph
            try:
                result = work()
            finally:
                if not is_capturing(stream):
                    graph.abandon()  # capture_end would end the process
                    raise MachineError("CUDA: a capture became invalid; load the artifact again")
                self._methods[_END](graph.address)
        finally:
            functions.call("aoti_torch_delete_cuda_stream_guard", guard)
        return graph, result


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

    def abandon(self) -> None:
        """Leave the C++ object as it is, since it cannot be ended."""
        self._end.detach()


def _destroy(destroy: Callable[..., Any], address: int, memory: object) -> None:
    """memory: what the object lies in, which lives as long as it."""
    destroy(address)
