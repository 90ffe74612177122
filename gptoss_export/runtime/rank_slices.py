"""The part of a stored tensor that one rank has, read from the checkpoint's own files: no second copy lies on a disk,
and no whole tensor in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..model.dtypes import ITEM_SIZES
from ..model.ranks import Slice
from .stored_tensors import StoredTensor

_MOST = 1 << 20  # bytes that are read at once to take some out of them
_LARGE = 64 << 10  # bytes of a run from which on each run is read by itself


@dataclass(frozen=True)
class StoredColumns:
    """A slice of a stored tensor whose bytes are not in one piece: runs of `run` bytes, `step` bytes apart.

    A Source (host_memory.py), but for its memory: its bytes lie nowhere as they are.
    """

    whole: StoredTensor
    shape: tuple[int, ...]
    begin: int  # of the first run, in the tensor
    run: int
    step: int

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    def read(self, start: int, to: memoryview) -> None:
        """Fill `to` with the slice's bytes from `start` on. Raises ArtifactError as StoredTensor.read."""
        # One buffer for all rounds: to make it takes time.
        size = min(max(_MOST, self.step), (to.nbytes // self.run + 1) * self.step)
        around = np.empty(size if self.run < _LARGE else 0, np.uint8)
        done = 0
        while done < to.nbytes:
            index, skipped = divmod(start + done, self.run)
            left = to.nbytes - done
            at = self.begin + index * self.step
            if skipped or left < self.run or self.run >= _LARGE:
                count = min(self.run - skipped, left)
                self.whole.read(at + skipped, to[done : done + count])
            else:
                runs = min(left // self.run, max(1, _MOST // self.step))
                count = runs * self.run
                # Behind the last run the file may end.
                self.whole.read(at, around.data[: (runs - 1) * self.step + self.run])
                taken = around[: runs * self.step].reshape(runs, self.step)[:, : self.run]
                np.frombuffer(to[done : done + count], np.uint8).reshape(runs, self.run)[:] = taken
            done += count


def stored_slices(stored: Sequence[StoredTensor], slices: Sequence[Slice]) -> list[StoredTensor | StoredColumns]:
    """The parts of a weight that a rank has, in their order.

    stored  the tensors that make up the weight, concatenated along dimension 0
    slices  of the weight
    """
    found: list[StoredTensor | StoredColumns] = []
    for part in slices:
        begin = 0
        for tensor in stored:
            rows = tensor.shape[0]
            if part.dim:
                found.append(_sliced(tensor, part))
            elif (start := max(part.start - begin, 0)) < (stop := min(part.stop - begin, rows)):
                found.append(_sliced(tensor, Slice(0, start, stop)))
            begin += rows
    return found


def _sliced(tensor: StoredTensor, part: Slice) -> StoredTensor | StoredColumns:
    shape = (*tensor.shape[: part.dim], part.stop - part.start, *tensor.shape[part.dim + 1 :])
    each = math.prod(tensor.shape[part.dim + 1 :]) * ITEM_SIZES[tensor.dtype]
    begin, run, step = part.start * each, (part.stop - part.start) * each, tensor.shape[part.dim] * each
    if math.prod(tensor.shape[: part.dim]) == 1 or run == step:
        size = math.prod(shape) * ITEM_SIZES[tensor.dtype]
        return replace(tensor, shape=shape, memory=tensor.memory[begin : begin + size], begin=tensor.begin + begin)
    return StoredColumns(tensor, shape, begin, run, step)
