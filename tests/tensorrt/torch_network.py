"""A network whose layers are PyTorch's, in place of TensorRT's. It is as strict as TensorRT about dtypes and ranks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch


class _Names:
    """An enumeration whose members are their names."""

    def __getattr__(self, name: str) -> str:
        return name


_TYPES = {
    "FLOAT": torch.float32,
    "BF16": torch.bfloat16,
    "HALF": torch.float16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "BOOL": torch.bool,
}
TRT: Any = SimpleNamespace(
    DataType=SimpleNamespace(**_TYPES),
    Weights=torch.from_numpy,
    ElementWiseOperation=_Names(),
    UnaryOperation=_Names(),
    ReduceOperation=_Names(),
    MatrixOperation=_Names(),
    GatherMode=_Names(),
)
_ELEMENTWISE: dict[str, Callable[..., torch.Tensor]] = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "GREATER": operator.gt,
    "EQUAL": operator.eq,
    "OR": operator.or_,
    "AND": operator.and_,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "FLOOR_DIV": lambda a, b: torch.div(a, b, rounding_mode="floor"),
}
_UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "COS": torch.cos,
    "SIN": torch.sin,
    "RECIP": torch.reciprocal,
    "SQRT": torch.sqrt,
    "EXP": torch.exp,
    "LOG": torch.log,
}
_REDUCE: dict[str, Callable[..., torch.Tensor]] = {
    "SUM": torch.sum,
    "AVG": torch.mean,
    "MAX": torch.amax,
    "MIN": torch.amin,
}


class TorchLayer:
    """Computes when it is asked, from the attributes that were set by then."""

    def __init__(self, compute: Callable[[Any], torch.Tensor | None]) -> None:
        self._compute = compute

    def get_output(self, index: int) -> torch.Tensor | None:
        assert index == 0
        return self._compute(self)


class TorchNetwork:
    def add_cast(self, x: torch.Tensor, dtype: torch.dtype) -> TorchLayer:
        return TorchLayer(lambda layer: x.to(dtype))

    def add_constant(self, shape: Sequence[int], weights: torch.Tensor) -> TorchLayer:
        return TorchLayer(lambda layer: weights.reshape(tuple(shape)))

    def add_shuffle(self, x: torch.Tensor) -> TorchLayer:
        return TorchLayer(lambda layer: x.reshape(layer.reshape_dims))

    def add_elementwise(self, a: torch.Tensor, b: torch.Tensor, name: str) -> TorchLayer:
        assert a.dtype == b.dtype and a.dim() == b.dim(), (name, a.dtype, b.dtype, a.shape, b.shape)
        return TorchLayer(lambda layer: _ELEMENTWISE[name](a, b))

    def add_unary(self, x: torch.Tensor, name: str) -> TorchLayer | None:
        return TorchLayer(lambda layer: _UNARY[name](x))

    def add_reduce(self, x: torch.Tensor, name: str, axes: int, keepdim: bool) -> TorchLayer:
        dims = [dim for dim in range(x.dim()) if axes >> dim & 1]
        return TorchLayer(lambda layer: _REDUCE[name](x, dims, keepdim).to(x.dtype))

    def add_select(self, condition: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> TorchLayer:
        assert condition.dtype == torch.bool and yes.dtype == no.dtype and condition.dim() == yes.dim() == no.dim()
        return TorchLayer(lambda layer: torch.where(condition, yes, no))

    def add_slice(
        self, x: torch.Tensor, starts: Sequence[int], shape: Sequence[int], strides: Sequence[int]
    ) -> TorchLayer:
        indices = [
            torch.arange(size) * stride + start for start, size, stride in zip(starts, shape, strides, strict=True)
        ]
        return TorchLayer(lambda layer: x[torch.meshgrid(*indices, indexing="ij")])

    def add_matrix_multiply(self, a: torch.Tensor, flag_a: str, b: torch.Tensor, flag_b: str) -> TorchLayer:
        assert a.dtype == b.dtype and (flag_a, flag_b) == ("NONE", "TRANSPOSE")
        return TorchLayer(lambda layer: a @ b.mT)

    def add_gather(self, x: torch.Tensor, indices: torch.Tensor, axis: int) -> TorchLayer:
        return TorchLayer(lambda layer: x[indices] if axis == 0 else None)

    def add_gather_v2(self, x: torch.Tensor, indices: torch.Tensor, mode: str) -> TorchLayer:
        assert mode == "ELEMENT"
        return TorchLayer(lambda layer: x.gather(layer.axis, indices))

    def add_concatenation(self, tensors: Sequence[torch.Tensor]) -> TorchLayer:
        return TorchLayer(lambda layer: torch.cat(list(tensors), layer.axis))

    def add_softmax(self, x: torch.Tensor) -> TorchLayer:
        return TorchLayer(lambda layer: x.softmax(layer.axes.bit_length() - 1))
