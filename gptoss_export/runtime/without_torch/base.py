"""What arrays of a CPU and of a GPU have in common."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ...host_memory import address_of
from ...libtorch.interface import Libtorch
from ..dtype_conversion import widened
from ..tensors import Tensors, runs
from .array import Array

if TYPE_CHECKING:
    import numpy as np

BFLOAT16 = "bfloat16"


class ArrayTensors(Tensors):
    """Arrays of one device. numpy is imported when contents first come to the host as an array.

    loading    libtorch on its way: arrays can be made and filled before it is there
    gpu_index  None: the arrays are in the host's memory
    """

    gpu_index: int | None = None

    def __init__(self, loading: Future[Libtorch]) -> None:
        self._loading = loading

    @property
    def libtorch(self) -> Libtorch:
        """Waits until it is loaded. Raises MachineError where it cannot be."""
        return self._loading.result()

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """An array whose contents mean nothing."""

    @abstractmethod
    def copy(self, to: int, source: int, size: int) -> None:
        """Copy memory of the device."""

    @abstractmethod
    def copy_from_host(self, to: int, source: int, size: int) -> None:
        """Copy memory of the host. The caller may change it when this has returned."""

    @abstractmethod
    def fill(self, to: Array, value: float) -> None:
        """Fill an array with a number."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all our work is done."""

    @abstractmethod
    def release(self, owner: object) -> None:
        """Another library no longer needs an array. Keep the owner of its memory until the work of that library is
        done."""

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        made = self.empty(shape, dtype)
        return made.fill_(0)

    def dtype_name(self, tensor: Any) -> str:
        return tensor.dtype

    def reinterpreted(self, tensor: Any, dtype: str) -> Array:
        return tensor.reinterpreted(dtype)

    def write(self, tensor: Any, cells: array) -> None:
        address, count = cells.buffer_info()
        if count * cells.itemsize != tensor.nbytes:
            raise ValueError(f"{tensor} cannot take {count} numbers of {cells.itemsize} bytes")
        self.copy_from_host(tensor.data_ptr(), address, tensor.nbytes)

    def rows(self, tensor: Any, ids: Sequence[int]) -> Array:
        made = self.empty((len(ids), *tensor.shape[1:]), tensor.dtype)
        self._move_rows(made, range(len(ids)), tensor, ids)
        return made

    def put_rows(self, tensor: Any, ids: Sequence[int], rows: Any) -> None:
        self._move_rows(tensor, ids, rows, range(len(ids)))

    def picked(self, tensor: Any, columns: Sequence[int]) -> Array:
        flat, width = tensor.view(-1), tensor.shape[1]
        return self.rows(flat, [row * width + column for row, column in enumerate(columns)])

    def joined(self, arrays: Sequence[Any]) -> np.ndarray:
        import numpy as np

        return np.concatenate(list(arrays))

    def mapped(self, memory: memoryview, shape: Sequence[int], dtype: str) -> Array:
        return Array(self, address_of(memory), shape, dtype, memory)

    def _move_rows(self, to: Any, targets: Sequence[int], source: Any, sources: Sequence[int]) -> None:
        size = source.nbytes // max(len(source), 1)
        for target, begin, count in runs(targets, sources):
            self.copy(to.data_ptr() + target * size, source.data_ptr() + begin * size, count * size)


def as_numpy(memory: Any, shape: Sequence[int], dtype: str) -> np.ndarray:
    """A new array of numpy of what `memory` holds; bfloat16 as float32."""
    import numpy as np

    if dtype == BFLOAT16:
        return widened(np.frombuffer(memory, np.uint16), dtype).reshape(tuple(shape))
    return np.frombuffer(memory, dtype).reshape(tuple(shape)).copy()
