"""torch's tensors on one device."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch

from ...cuda.gpu import gpu
from ...cuda.upload import upload
from ...host_memory import Source, copy_from_host
from ...model.dtypes import dtype_name, torch_dtype
from ..tensors import Captured, Fetched, Tensors
from .capture import capture

Result = TypeVar("Result")


class TorchTensors(Tensors):
    """Tensors of `device`, on torch's current stream. They are made and changed under inference mode."""

    out_of_memory = torch.OutOfMemoryError

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def empty(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=torch_dtype(dtype), device=self.device)

    def zeros(self, shape: Sequence[int], dtype: str) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch_dtype(dtype), device=self.device)

    def dtype_name(self, tensor: Any) -> str:
        return dtype_name(tensor.dtype)

    def reinterpreted(self, tensor: Any, dtype: str) -> torch.Tensor:
        return tensor.view(-1).view(torch_dtype(dtype))

    def write(self, tensor: Any, cells: array) -> None:
        source = torch.frombuffer(cells, dtype=tensor.dtype).view(tensor.shape)
        # A copy to a GPU from ordinary memory waits for what the GPU does. torch keeps pinned memory until it is done.
        tensor.copy_(source.pin_memory() if self.on_gpu else source, non_blocking=True)

    def rows(self, tensor: Any, ids: Sequence[int]) -> torch.Tensor:
        return tensor[self.numbers(ids)]

    def put_rows(self, tensor: Any, ids: Sequence[int], rows: Any) -> None:
        tensor[self.numbers(ids)] = rows

    def picked(self, tensor: Any, columns: Sequence[int]) -> torch.Tensor:
        index: Any = self.numbers(columns)
        return tensor.gather(-1, index[:, None]).squeeze(-1)

    def fetch(self, tensors: Sequence[Any]) -> Fetched:
        return _Copies(tensors, self.on_gpu)

    def joined(self, arrays: Sequence[Any]) -> torch.Tensor:
        return torch.cat(list(arrays))

    def mapped(self, memory: memoryview, shape: Sequence[int], dtype: str) -> torch.Tensor:
        return torch.frombuffer(memory, dtype=torch_dtype(dtype)).view(tuple(shape))

    def filler(self) -> Callable[[Sequence[tuple[Any, Source]]], None]:
        if self.on_gpu:
            stream = torch.cuda.current_stream(self.device).cuda_stream
            return partial(upload, gpu=gpu(self.device.index or 0), stream=stream)
        return copy_from_host

    def capture(self, work: Callable[[], Result], pool: Any = None) -> tuple[Captured, Result]:
        return capture(work, self.device, pool)

    def new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def free_memory(self) -> int:
        """With what torch keeps for reuse."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def working(self) -> AbstractContextManager[None]:
        return torch.inference_mode()


class _Copies(Fetched):
    """Copies in pinned memory, which are complete after an event."""

    def __init__(self, tensors: Sequence[torch.Tensor], on_gpu: bool) -> None:
        self._event = torch.cuda.Event() if on_gpu else None
        self._arrays = [_to_host(tensor, on_gpu) for tensor in tensors]
        if self._event is not None:
            self._event.record()

    def wait(self) -> list[torch.Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._arrays


def _to_host(tensor: torch.Tensor, pinned: bool) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    return made.copy_(tensor, non_blocking=True)
