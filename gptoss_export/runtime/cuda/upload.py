"""Copies mapped weights to a GPU: several threads, each piece through pinned memory.

An ordinary copy from mapped memory goes through a buffer of the driver, one piece at a time, and is slow while other
threads hash the same pages. Here a thread copies a piece into pinned memory while the GPU fetches others. More
threads than _THREADS make it no faster, because the hashes then take longer (docs/experiments.md). All copies are put
on the caller's stream: there is one way to the GPU, and torch's other streams would cost GPU memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

_THREADS = 4
_PIECE = 8 << 20  # bytes

Copy = tuple[torch.Tensor, torch.Tensor]  # to, from: contiguous, of the same number of bytes


def upload(copies: Sequence[Copy], device: torch.device) -> None:
    """Fill tensors on a GPU with tensors on the CPU, byte by byte. They are filled when it returns."""
    pieces = [piece for pair in copies for piece in _pieces(*pair)]
    stream, inference = torch.cuda.current_stream(device), torch.is_inference_mode_enabled()
    free: SimpleQueue[tuple[torch.Tensor, torch.cuda.Event]] = SimpleQueue()
    for _ in range(min(2 * _THREADS, len(pieces))):
        free.put((torch.empty(_PIECE, dtype=torch.uint8, device="cpu", pin_memory=True), torch.cuda.Event()))

    def copy(piece: Copy) -> None:
        to, source = piece
        pinned, fetched = free.get()  # the one that has waited longest
        try:
            fetched.synchronize()
            # torch's copy_ would use several threads.
            ctypes.memmove(pinned.data_ptr(), source.data_ptr(), source.numel())
            # A thread does not inherit the caller's mode, and the caller's tensors may need it.
            with torch.inference_mode(inference):
                to.copy_(pinned[: source.numel()], non_blocking=True)
            fetched.record(stream)
        finally:  # another piece may wait for this memory
            free.put((pinned, fetched))

    # The stream, and with it the device, of a thread is set once. Restoring it would select GPU 0, which may not be
    # in use.
    with ThreadPoolExecutor(_THREADS, initializer=torch.cuda.set_stream, initargs=(stream,)) as threads:
        for _ in threads.map(copy, pieces):
            pass
    stream.synchronize()


def _pieces(to: torch.Tensor, source: torch.Tensor) -> list[Copy]:
    """A copy in pieces of at most _PIECE bytes."""
    if to.nbytes != source.nbytes:
        raise ValueError(f"{to.nbytes} bytes cannot be filled with {source.nbytes}")
    return list(zip(*(tensor.view(-1).view(torch.uint8).split(_PIECE) for tensor in (to, source)), strict=True))
