"""Copies weights to a GPU: several threads, each piece through pinned memory.

An ordinary copy from mapped memory goes through a buffer of the driver, one piece at a time, and is slow while other
threads hash the same pages. Here a thread reads a piece into pinned memory while the GPU fetches others
(docs/experiments.md has the number of threads). All copies are put on the caller's stream: there is one way to the GPU,
and other streams would cost GPU memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import NamedTuple

from ..host_memory import Memory, Source
from .driver import call
from .gpu import Gpu
from .pinned import PinnedBuffer

_THREADS = 6
_PIECE = 8 << 20  # bytes

Copy = tuple[Memory, Source]  # to, from: contiguous, of the same number of bytes


class _Piece(NamedTuple):
    to: int
    source: Source
    start: int
    size: int


def upload(copies: Sequence[Copy], gpu: Gpu, stream: int) -> None:
    """Fill tensors on a GPU with memory of the host, byte by byte. They are filled when it returns."""
    pieces = [piece for pair in copies for piece in _pieces(*pair)]
    free: SimpleQueue[PinnedBuffer] = SimpleQueue()
    with ExitStack() as buffers:
        buffers.enter_context(gpu.current())
        for _ in range(min(2 * _THREADS, len(pieces))):
            free.put(buffers.enter_context(PinnedBuffer(gpu, _PIECE)))

        def copy(piece: _Piece) -> None:
            buffer = free.get()  # the one that has waited longest
            try:
                with gpu.current():
                    buffer.wait()
                    piece.source.read(piece.start, buffer.memory[: piece.size])
                    call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(piece.to), buffer.pointer,
                         ctypes.c_size_t(piece.size), ctypes.c_void_p(stream))  # fmt: skip
                    buffer.record(stream)
            finally:  # another piece may wait for this memory
                free.put(buffer)

        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                for _ in threads.map(copy, pieces):
                    pass
        finally:  # the buffers are given back
            call("cuStreamSynchronize", ctypes.c_void_p(stream))


def _pieces(to: Memory, source: Source) -> Iterator[_Piece]:
    """A copy in pieces of at most _PIECE bytes."""
    if to.nbytes != source.nbytes:
        raise ValueError(f"{to.nbytes} bytes cannot be filled with {source.nbytes}")
    for start in range(0, source.nbytes, _PIECE):
        yield _Piece(to.data_ptr() + start, source, start, min(_PIECE, source.nbytes - start))
