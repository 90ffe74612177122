"""A TensorRT network, and the layers that several converters are made of.

Here is what torch does by itself and TensorRT does not: promotion of dtypes, broadcasting of ranks, Python numbers as
operands. Networks are strongly typed, so that every dtype is the one that torch computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ...errors import BuildError


class RefusedLayerError(BuildError):
    """TensorRT does not make a layer. The message is what it reported."""


class Layers:
    """A network and what adds layers to it. Tensors are TensorRT's.

    reported: returns what TensorRT has reported last, for the errors.
    """

    def __init__(self, trt: ModuleType, network: Any, reported: Callable[[], str]) -> None:
        self.trt, self.network = trt, network
        self._reported = reported
        self._constants: list[np.ndarray] = []  # must outlive the build

    def output(self, layer: Any, **settings: Any) -> Any:
        """The output of a layer that was just added, after its attributes are set.

        Raises RefusedLayerError where TensorRT made none, which its Python interface says by None.
        """
        if layer is None:
            raise RefusedLayerError(f"TensorRT refuses the layer: {self._reported()}")
        for name, value in settings.items():
            setattr(layer, name, value)
        tensor = layer.get_output(0)
        if tensor is None:
            raise RefusedLayerError(f"TensorRT gives no output of the layer: {self._reported()}")
        return tensor

    def dtype(self, dtype: torch.dtype) -> Any:
        """TensorRT's type. Raises ValueError for a dtype that it has no type for."""
        types = self.trt.DataType
        known = {
            torch.float32: types.FLOAT,
            torch.bfloat16: types.BF16,
            torch.float16: types.HALF,
            torch.int64: types.INT64,
            torch.int32: types.INT32,
            torch.int8: types.INT8,
            torch.bool: types.BOOL,
        }
        if dtype not in known:
            raise ValueError(f"{dtype}, which TensorRT has no type for; expected one of {', '.join(map(str, known))}")
        return known[dtype]

    def cast(self, tensor: Any, dtype: torch.dtype) -> Any:
        wanted = self.dtype(dtype)
        return tensor if tensor.dtype == wanted else self.output(self.network.add_cast(tensor, wanted))

    def constant(self, values: np.ndarray) -> Any:
        values = np.ascontiguousarray(values)
        self._constants.append(values)
        return self.output(self.network.add_constant(values.shape, self.trt.Weights(values)))

    def full(self, value: float | bool, like: Any) -> Any:
        """A number as a tensor of the dtype and rank of `like`.

        Raises ValueError for a fraction where `like` holds whole numbers.
        """
        types = self.trt.DataType
        kind = {types.INT64: np.int64, types.INT32: np.int32, types.BOOL: np.bool_}.get(like.dtype, np.float32)
        if kind is not np.float32 and isinstance(value, float) and not value.is_integer():
            raise ValueError(f"the number {value} with a tensor of {like.dtype}")
        scalar = self.constant(np.full((1,) * len(like.shape), value, kind))
        return scalar if scalar.dtype == like.dtype else self.output(self.network.add_cast(scalar, like.dtype))

    def zeros(self, dtype: torch.dtype, shape: Sequence[int]) -> Any:
        return self.cast(self.constant(np.zeros(shape, np.float32)), dtype)

    def reshape(self, tensor: Any, shape: Sequence[int]) -> Any:
        return self.output(self.network.add_shuffle(tensor), reshape_dims=tuple(shape))

    def of_rank(self, tensor: Any, rank: int) -> Any:
        """The tensor with dimensions of 1 in front."""
        missing = rank - len(tensor.shape)
        return self.reshape(tensor, (1,) * missing + tuple(tensor.shape)) if missing else tensor

    def of_one_rank(self, *tensors: Any) -> list[Any]:
        """The tensors with dimensions of 1 in front, all of the largest rank."""
        rank = max(len(tensor.shape) for tensor in tensors)
        return [self.of_rank(tensor, rank) for tensor in tensors]

    def elementwise(self, operation: str, a: Any, b: Any) -> Any:
        """Of two tensors, or of a tensor and a number, with torch's broadcasting."""
        if not is_tensor(b):
            b = self.full(b, a)
        if not is_tensor(a):
            a = self.full(a, b)
        a, b = self.of_one_rank(a, b)
        return self.output(self.network.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, operation)))

    def unary(self, operation: str, tensor: Any) -> Any:
        return self.output(self.network.add_unary(tensor, getattr(self.trt.UnaryOperation, operation)))

    def reduce(self, operation: str, tensor: Any, dim: int, keepdim: bool = False) -> Any:
        axes = 1 << (dim % len(tensor.shape))
        kind = getattr(self.trt.ReduceOperation, operation)
        return self.output(self.network.add_reduce(tensor, kind, axes, keepdim))

    def select(self, condition: Any, yes: Any, no: Any) -> Any:
        """By the elements of `condition`. A number takes the dtype of the other operand."""
        if not is_tensor(yes):
            yes = self.full(yes, no)
        if not is_tensor(no):
            no = self.full(no, yes)
        return self.output(self.network.add_select(*self.of_one_rank(condition, yes, no)))

    def slice(self, tensor: Any, dim: int, start: int, length: int) -> Any:
        starts, shape = [0] * len(tensor.shape), list(tensor.shape)
        starts[dim], shape[dim] = start, length
        return self.output(self.network.add_slice(tensor, starts, shape, [1] * len(shape)))


def is_tensor(operand: Any) -> bool:
    """Whether an operand is a tensor, not a Python number."""
    return hasattr(operand, "dtype")
