"""Tensors: memory on the device, and what the runtime does with it between programs.

There are two kinds. `with_torch` has torch's tensors. `without_torch` has arrays of its own, and is what a process uses
that has not imported torch. What is written here runs with both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from ..host_memory import Source

Result = TypeVar("Result")
CELLS = {"int64": "q", "int32": "i", "float32": "f"}  # dtypes that the host writes, as `array` calls them


class Tensor(Protocol):
    """Contiguous memory of a device with a shape and a dtype. A slice or a view is of the same memory."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any:
        """A row, or rows: `tensor[2]`, `tensor[1:3]`."""

    def view(self, *shape: Any) -> Any: ...

    def split(self, count: int) -> Sequence[Any]:
        """In parts of `count` rows, the last one of what is left."""

    def copy_(self, source: Any) -> Any:
        """Take the contents of a tensor of the same size and dtype."""

    def fill_(self, value: float) -> Any: ...

    def clone(self) -> Any: ...

    def data_ptr(self) -> int: ...


class Graph(Protocol):
    """Work that was captured. It can be done again."""

    def replay(self) -> None: ...


class Captured(NamedTuple):
    """A graph, and how many of its kernels are launched early."""

    graph: Graph
    early_launches: int


class Fetched(ABC):
    """Tensors on their way to the host."""

    @abstractmethod
    def wait(self) -> list[Any]:
        """Their contents, in arrays of the host: of torch, or of numpy."""


# A loaded program: its inputs in the order of its signature to its outputs in that order.
LoadedProgram: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Tensors(ABC):
    """Makes tensors of one device and moves their contents. dtypes are torch's names without `torch.`

    on_gpu             whether the device is a GPU: work is put on a stream, and can be captured
    captures_at_first  whether `capture` takes work that has not run before
    out_of_memory      what `capture` raises where memory does not suffice
    """

    on_gpu: bool
    captures_at_first = False
    out_of_memory: type[Exception]

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        """A tensor whose contents mean nothing."""

    @abstractmethod
    def zeros(self, shape: Sequence[int], dtype: str) -> Tensor:
        """A tensor of zeros."""

    @abstractmethod
    def dtype_name(self, tensor: Tensor) -> str:
        """The name of a tensor's dtype."""

    @abstractmethod
    def reinterpreted(self, tensor: Tensor, dtype: str) -> Tensor:
        """The same memory as numbers [n] of another dtype."""

    @abstractmethod
    def write(self, tensor: Tensor, cells: array) -> None:
        """Fill a tensor with numbers of the host, which are of its dtype and in its order. It is filled for what is put
        on the stream after this; the host goes on."""

    @abstractmethod
    def rows(self, tensor: Tensor, ids: Sequence[int]) -> Tensor:
        """A new tensor of some rows."""

    @abstractmethod
    def put_rows(self, tensor: Tensor, ids: Sequence[int], rows: Tensor) -> None:
        """Replace some rows."""

    @abstractmethod
    def picked(self, tensor: Tensor, columns: Sequence[int]) -> Tensor:
        """A new tensor [n]: of row i of [n, V] the number in column `columns[i]`."""

    @abstractmethod
    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Begin to copy tensors to the host. The next step may be launched meanwhile."""

    @abstractmethod
    def joined(self, arrays: Sequence[Any]) -> Any:
        """Arrays [n] of the host as one."""

    @abstractmethod
    def mapped(self, memory: memoryview, shape: Sequence[int], dtype: str) -> Tensor:
        """A tensor of the host's memory, such as that of a mapped file. On a CPU only."""

    @abstractmethod
    def filler(self) -> Callable[[Sequence[tuple[Tensor, Source]]], None]:
        """What fills tensors with bytes of the host. Any thread may call it: what this thread has put on
        the device before comes first. The tensors are filled when it returns."""

    @abstractmethod
    def capture(self, work: Callable[[], Result], pool: Any = None) -> tuple[Captured, Result]:
        """Capture `work`. Its results are those of each replay. Raises what `work` raises.

        Unless `captures_at_first`, it has run before: code is loaded and memory has been allocated then.

        pool  of `new_pool`, the memory of other graphs, to share it; no two of them must ever run at the same time
        """

    @abstractmethod
    def new_pool(self) -> Any:
        """Memory that graphs can share."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that the device has left."""

    @abstractmethod
    def working(self) -> AbstractContextManager[None]:
        """In this context, the thread works with the tensors of this device."""

    def numbers(self, values: Sequence[float], dtype: str = "int64") -> Tensor:
        """A new tensor [n] of numbers of the host."""
        made = self.empty((len(values),), dtype)
        if values:
            self.write(made, array(CELLS[dtype], values))
        return made


def runs(targets: Sequence[int], sources: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Pairs of row numbers as runs of consecutive ones: target, source, how many."""
    start = 0
    for at in range(1, len(targets) + 1):
        offset = at - start
        if at == len(targets) or (targets[at], sources[at]) != (targets[start] + offset, sources[start] + offset):
            yield targets[start], sources[start], offset
            start = at
