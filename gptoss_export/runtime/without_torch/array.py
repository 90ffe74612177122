"""An array: memory of a device with a shape and a dtype, without torch's Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ...libtorch.interface import Libtorch
from ...libtorch.tensor_handle import Described, TensorHandle
from ...model.dtypes import ITEM_SIZES
from ..tensors import Fetched
from .dlpack import capsule, device

if TYPE_CHECKING:
    import numpy as np


class Device(Protocol):
    """Where an array is, and what moves its contents (`base.ArrayTensors`)."""

    gpu_index: int | None

    @property
    def libtorch(self) -> Libtorch: ...

    def empty(self, shape: Sequence[int], dtype: str) -> Array: ...

    def copy(self, to: int, source: int, size: int) -> None: ...

    def fill(self, to: Array, value: float) -> None: ...

    def fetch(self, tensors: Sequence[Any]) -> Fetched: ...

    def synchronize(self) -> None: ...

    def release(self, owner: object) -> None: ...


class Array:
    """Contiguous memory at `address`.

    shape  sizes of the dimensions
    dtype  torch's name without `torch.`
    owner  what keeps the memory
    """

    def __init__(self, device: Device, address: int, shape: Sequence[int], dtype: str, owner: Any) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._device, self._address, self._owner = device, address, owner
        self._handle: TensorHandle | None = None

    @classmethod
    def of_handle(cls, device: Device, handle: TensorHandle) -> Array:
        """A result of a program."""
        address, shape, dtype = handle.described()
        made = cls(device, address, shape, dtype, handle)
        made._handle = handle
        return made

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEM_SIZES[self.dtype]

    @property
    def handle(self) -> TensorHandle:
        """As programs take it."""
        if self._handle is None:
            described = Described(self._address, self.shape, self.dtype)
            self._handle = TensorHandle.of_memory(self._device.libtorch, described, self._device.gpu_index)
        return self._handle

    def data_ptr(self) -> int:
        return self._address

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice) -> Array:
        """A row, or consecutive rows. Raises IndexError for a row that does not exist."""
        count, row = len(self), self.nbytes // max(len(self), 1)
        if isinstance(index, slice):
            start, end, step = index.indices(count)
            if step != 1:
                raise IndexError(f"slice {index}: expected consecutive rows")
            return self._part(start * row, (max(end - start, 0), *self.shape[1:]))
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        return self._part(index % count * row, self.shape[1:])

    def view(self, *shape: Any) -> Array:
        """The same memory in another shape. -1: what is left."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)
        if -1 in sizes:
            known = -math.prod(sizes)
            sizes = tuple(self.size // known if size == -1 else size for size in sizes)
        if math.prod(sizes) != self.size:
            raise ValueError(f"{list(self.shape)} cannot be viewed as {list(sizes)}")
        return self._part(0, sizes)

    def reinterpreted(self, dtype: str) -> Array:
        """The same memory as numbers [n] of another dtype."""
        return Array(self._device, self._address, (self.nbytes // ITEM_SIZES[dtype],), dtype, self._owner)

    def split(self, count: int) -> list[Array]:
        return [self[start : start + count] for start in range(0, len(self), count)]

    def copy_(self, source: Array) -> Array:
        if source.nbytes != self.nbytes or source.dtype != self.dtype:
            raise ValueError(f"{self} cannot take {source}")
        self._device.copy(self._address, source._address, self.nbytes)
        return self

    def fill_(self, value: float) -> Array:
        self._device.fill(self, value)
        return self

    def clone(self) -> Array:
        return self._device.empty(self.shape, self.dtype).copy_(self)

    def numpy(self) -> np.ndarray:
        """On the host; bfloat16 as float32. Of a GPU it is a copy, after what the GPU still does."""
        (found,) = self._device.fetch([self]).wait()
        return found

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For numpy.array and numpy.asarray. It is always a copy."""
        if copy is False:
            raise ValueError(f"{self} cannot become an array of numpy without a copy")
        found = self.numpy()
        return found if dtype is None else found.astype(dtype)

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: object = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """For torch.from_dlpack and others, which use the memory as it is. All that was put on our stream is done then,
        so that a reader's stream need not wait for it. Raises BufferError for another device, and where a copy is
        wanted."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"{self}: is given as it is, without a copy, and on its own device")
        self._device.synchronize()
        return capsule(self._address, self.shape, self.dtype, self._device.gpu_index, self._owner, self._device.release)

    def __dlpack_device__(self) -> tuple[int, int]:
        found = device(self._device.gpu_index)
        return found.kind, found.index

    def __repr__(self) -> str:
        return f"Array({self.dtype} {list(self.shape)})"

    def _part(self, offset: int, shape: Sequence[int]) -> Array:
        return Array(self._device, self._address + offset, shape, self.dtype, self._owner)
