"""The memory that ranks send their parts to inside of programs (model/places.py), and how it is found."""

from __future__ import annotations

import ctypes
import mmap
import os

from torch import distributed

from ..cuda.gpu import Gpu
from ..cuda.peer_memory import GpuMemory, HostMemory, OpenedMemory
from ..model.places import COUNTS, received_bytes

_INT32 = 4


class NoExchange:
    """Of a rank on a CPU, whose programs leave it all to gloo."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.places = (rank, 0, 0, *[0] * ranks)

    def missed(self) -> bool:
        """Whether a rank did not answer in a sum, since when no result means anything."""
        return False


class Exchange:
    """Of a rank on a GPU. Raises RunError where the driver refuses.

    store   of all ranks; each of them makes this object
    through a file (`shared_file`), where not all GPUs reach each other's memory; else None
    """

    def __init__(self, store: distributed.Store, rank: int, ranks: int, gpu: Gpu, through: int | None) -> None:
        self._counters = GpuMemory(gpu, COUNTS * _INT32)
        self._late = mmap.mmap(-1, mmap.PAGESIZE)
        self._seen_late = HostMemory(gpu, self._late)
        self._received: list[GpuMemory | OpenedMemory | HostMemory]
        if through is None:
            own = GpuMemory(gpu, received_bytes(ranks))
            store.set(_name(rank), own.handle.hex())
            self._received = [
                own if other == rank else OpenedMemory(gpu, bytes.fromhex(store.get(_name(other)).decode()))
                for other in range(ranks)
            ]
            addresses = [memory.address for memory in self._received]
        else:
            shared = HostMemory(gpu, mmap.mmap(through, shared_bytes(ranks)))
            self._received = [shared]
            addresses = [shared.address + received_bytes(ranks) * other for other in range(ranks)]
        self.places = (rank, self._counters.address, self._seen_late.address, *addresses)

    def missed(self) -> bool:
        """As NoExchange."""
        return bool(ctypes.c_int32.from_buffer(self._late).value)


def shared_bytes(ranks: int) -> int:
    """Size of the file that all ranks send through."""
    return ranks * received_bytes(ranks)


def shared_file(ranks: int) -> int:
    """A new file of that size, of zeros and without a name; its descriptor."""
    descriptor = os.memfd_create("gptoss-export-sums")
    os.ftruncate(descriptor, shared_bytes(ranks))
    return descriptor


def _name(rank: int) -> str:
    return f"memory of rank {rank}"
