"""A way from rank 0 to the other ranks through memory that they share: one writes, each of the others reads all of it.

The memory is a file without a name, whose descriptor the processes inherit or are handed: nothing is left behind when
they are killed. It holds counters, then a ring of bytes:

    bytes that were written so far, then for each reader the bytes that it has read, 64 bytes apart
    the ring; a message is its length in 8 bytes, and the message

A counter has one writer. It is written after the bytes that it counts. The lock between the two makes processors that
reorder writes keep the order.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable

_APART = 64  # bytes between counters: those of two processes never share a line of a cache
_RING = 8 << 20  # bytes
_LENGTH = 8  # bytes of the length of a message
_SPINS = 200  # looks before a reader sleeps between two: some 20 us
_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds that it sleeps


def shared_memory(readers: int) -> int:
    """A new file for so many readers; its descriptor."""
    descriptor = os.memfd_create("gptoss-export-ranks")
    os.ftruncate(descriptor, (1 + readers) * _APART + _RING)
    return descriptor


class _Shared:
    def __init__(self, descriptor: int, readers: int) -> None:
        self._whole = mmap.mmap(descriptor, (1 + readers) * _APART + _RING)
        counters = memoryview(self._whole)[: (1 + readers) * _APART].cast("Q")
        self._counters, self._readers = counters, readers
        self._ring = memoryview(self._whole)[(1 + readers) * _APART :]
        self._lock = threading.Lock()

    def _counter(self, index: int) -> int:
        with self._lock:
            return self._counters[index * _APART // 8]

    def _count(self, index: int, value: int) -> None:
        with self._lock:
            self._counters[index * _APART // 8] = value


class Sender(_Shared):
    """The writing end. One thread at a time uses it."""

    def __init__(self, descriptor: int, readers: int) -> None:
        super().__init__(descriptor, readers)
        self._written = 0

    def read(self, reader: int) -> int | None:
        """The bytes that a reader has read so far; None where it has read all."""
        found = self._counter(1 + reader)
        return None if found == self._written else found

    def send(self, message: bytes, check: Callable[[], None]) -> None:
        """Write a message for all readers. Where they are far behind it waits, and calls `check` meanwhile, which
        raises an error to stop waiting."""
        left = memoryview(len(message).to_bytes(_LENGTH, "little") + message)
        while left:
            room = _RING - (self._written - min(map(self._counter, range(1, 1 + self._readers))))
            if not room:
                check()
                time.sleep(_LONGEST)
                continue
            at = self._written % _RING
            count = min(room, len(left), _RING - at)
            self._ring[at : at + count] = left[:count]
            self._written += count
            self._count(0, self._written)
            left = left[count:]


class Receiver(_Shared):
    """The reading end of one reader, 0 to readers - 1."""

    def __init__(self, descriptor: int, readers: int, reader: int) -> None:
        super().__init__(descriptor, readers)
        self._index, self._read = 1 + reader, 0

    def receive(self) -> bytes:
        """The next message, as soon as it is there."""
        return self._take(int.from_bytes(self._take(_LENGTH), "little"))

    def _take(self, size: int) -> bytes:
        found = bytearray(size)
        done = 0
        while done < size:
            at = self._read % _RING
            count = min(self._wait() - self._read, size - done, _RING - at)
            found[done : done + count] = self._ring[at : at + count]
            done += count
            self._read += count
            self._count(self._index, self._read)
        return bytes(found)

    def _wait(self) -> int:
        """What was written, as soon as there is more than was read."""
        pause, looks = _SHORTEST, 0
        while (written := self._counter(0)) == self._read:
            looks += 1
            if looks > _SPINS:
                time.sleep(pause)
                pause = min(1.1 * pause, _LONGEST)
        return written
