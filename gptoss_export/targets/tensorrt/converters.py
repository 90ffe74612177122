"""Aten nodes as TensorRT layers: the table of all that a segment may hold.

A converter takes the network's `Layers` and the node's arguments, tensors in place of nodes, and returns a
tensor, or a tuple of them. What torch does by itself and TensorRT does not is in `Layers`: promotion of dtypes,
broadcasting of ranks, Python numbers as operands. Networks are strongly typed: every dtype is the one that torch
computes in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

aten = torch.ops.aten


class Layers:
    """A network, and the layers that several converters are made of."""

    def __init__(self, trt: ModuleType, network: Any) -> None:
        self.trt, self.network = trt, network
        self._kept: list[np.ndarray] = []  # constants must outlive the build

    def dtype(self, dtype: torch.dtype) -> Any:
        types = self.trt.DataType
        return {
            torch.float32: types.FLOAT, torch.bfloat16: types.BF16, torch.float16: types.HALF,
            torch.int64: types.INT64, torch.int32: types.INT32, torch.int8: types.INT8, torch.bool: types.BOOL,
        }[dtype]  # fmt: skip

    def cast(self, tensor: Any, dtype: torch.dtype) -> Any:
        wanted = self.dtype(dtype)
        return tensor if tensor.dtype == wanted else self.network.add_cast(tensor, wanted).get_output(0)

    def constant(self, values: np.ndarray) -> Any:
        values = np.ascontiguousarray(values)
        self._kept.append(values)
        return self.network.add_constant(values.shape, self.trt.Weights(values)).get_output(0)

    def full(self, value: float | bool, like: Any) -> Any:
        """A number as a tensor of the dtype and rank of another. Raises ValueError where whole numbers cannot hold it."""
        types = self.trt.DataType
        kind = {types.INT64: np.int64, types.INT32: np.int32, types.BOOL: np.bool_}.get(like.dtype, np.float32)
        if kind is not np.float32 and isinstance(value, float) and not value.is_integer():
            raise ValueError(f"the number {value} beside a tensor of {like.dtype}")
        scalar = self.constant(np.full((1,) * len(like.shape), value, kind))
        return scalar if scalar.dtype == like.dtype else self.network.add_cast(scalar, like.dtype).get_output(0)

    def zeros(self, dtype: torch.dtype, shape: Sequence[int]) -> Any:
        return self.cast(self.constant(np.zeros(shape, np.float32)), dtype)

    def reshape(self, tensor: Any, shape: Sequence[int]) -> Any:
        layer = self.network.add_shuffle(tensor)
        layer.reshape_dims = tuple(shape)
        return layer.get_output(0)

    def of_rank(self, tensor: Any, rank: int) -> Any:
        """With dimensions of 1 in front."""
        missing = rank - len(tensor.shape)
        return self.reshape(tensor, (1,) * missing + tuple(tensor.shape)) if missing else tensor

    def of_one_rank(self, *tensors: Any) -> list[Any]:
        rank = max(len(tensor.shape) for tensor in tensors)
        return [self.of_rank(tensor, rank) for tensor in tensors]

    def elementwise(self, operation: str, a: Any, b: Any) -> Any:
        """Of two tensors, or a tensor and a number, with torch's broadcasting."""
        if not hasattr(b, "dtype"):
            b = self.full(b, a)
        if not hasattr(a, "dtype"):
            a = self.full(a, b)
        a, b = self.of_one_rank(a, b)
        return self.network.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, operation)).get_output(0)

    def unary(self, operation: str, tensor: Any) -> Any:
        return self.network.add_unary(tensor, getattr(self.trt.UnaryOperation, operation)).get_output(0)

    def reduce(self, operation: str, tensor: Any, dim: int, keepdim: bool = False) -> Any:
        axes = 1 << (dim % len(tensor.shape))
        return self.network.add_reduce(tensor, getattr(self.trt.ReduceOperation, operation), axes, keepdim).get_output(0)

    def select(self, condition: Any, yes: Any, no: Any) -> Any:
        """By the elements of `condition`; numbers take the dtype of the other."""
        if not hasattr(yes, "dtype"):
            yes = self.full(yes, no)
        if not hasattr(no, "dtype"):
            no = self.full(no, yes)
        return self.network.add_select(*self.of_one_rank(condition, yes, no)).get_output(0)

    def slice(self, tensor: Any, dim: int, start: int, length: int) -> Any:
        starts, shape = [0] * len(tensor.shape), list(tensor.shape)
        starts[dim], shape[dim] = start, length
        return self.network.add_slice(tensor, starts, shape, [1] * len(shape)).get_output(0)


def _binary(operation: str) -> Callable[..., Any]:
    """A pointwise op of two operands, in the dtype that torch promotes them to.

    A Python number beside a tensor of 16 bits is not rounded to those: on a GPU torch computes in float32 and rounds
    the result.
    """

    def convert(layers: Layers, value: torch.Tensor, a: Any, b: Any, alpha: int = 1) -> Any:
        if alpha != 1:
            raise NotImplementedError(f"alpha {alpha}")
        number = not (hasattr(a, "dtype") and hasattr(b, "dtype"))
        computed = torch.float32 if number and value.dtype in (torch.bfloat16, torch.float16) else value.dtype
        a, b = (layers.cast(x, computed) if hasattr(x, "dtype") else x for x in (a, b))
        return layers.cast(layers.elementwise(operation, a, b), value.dtype)

    return convert


def _compare(*operations: str) -> Callable[..., Any]:
    """A comparison of two tensors of one dtype, or with a number that the tensor's dtype holds."""

    def convert(layers: Layers, value: torch.Tensor, a: Any, b: Any) -> Any:
        results = [layers.elementwise(operation, a, b) for operation in operations]
        return results[0] if len(results) == 1 else layers.elementwise("OR", *results)

    return convert


def _unary(operation: str) -> Callable[..., Any]:
    return lambda layers, value, x: layers.unary(operation, x)


def _reshape(layers: Layers, value: torch.Tensor, x: Any, *_: Any) -> Any:
    return layers.reshape(x, value.shape)


def _cast(layers: Layers, value: torch.Tensor, x: Any, *_: Any, **__: Any) -> Any:
    return layers.cast(x, value.dtype)


def _same(layers: Layers, value: torch.Tensor, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _expand(layers: Layers, value: torch.Tensor, x: Any, *_: Any, **__: Any) -> Any:
    rank = len(value.shape)
    x = layers.of_rank(x, rank)
    strides = [0 if size == 1 else 1 for size in x.shape]
    return layers.network.add_slice(x, [0] * rank, tuple(value.shape), strides).get_output(0)


def _square(layers: Layers, value: torch.Tensor, x: Any) -> Any:
    return layers.elementwise("PROD", x, x)


def _rsqrt(layers: Layers, value: torch.Tensor, x: Any) -> Any:
    return layers.unary("RECIP", layers.unary("SQRT", x))


def _mean(layers: Layers, value: torch.Tensor, x: Any, dims: Sequence[int], keepdim: bool = False) -> Any:
    (dim,) = dims
    return layers.reduce("AVG", x, dim, keepdim)


def _linear(layers: Layers, value: torch.Tensor, x: Any, weight: Any, bias: Any = None) -> Any:
    """x [T, K] (one row: of any rank) by weight [N, K].

    One row is written as a sum of products: TensorRT for RTX has slow kernels for matrix products of one row, and
    compiles this to one that sums in float32 and takes in what comes before (H200, alone: 276 us in place of 361 for
    201,088 x 2,880 in bfloat16, 2.7 in place of 6.7 for 32 x 2,880 in float32).
    """
    if value.numel() == value.size(-1):
        products = layers.elementwise("PROD", *(layers.cast(factor, torch.float32) for factor in (weight, x)))
        total = layers.reshape(layers.reduce("SUM", products, -1), value.shape)
        if bias is not None:
            total = layers.elementwise("SUM", total, layers.cast(bias, torch.float32))
        return layers.cast(total, value.dtype)
    operation = layers.trt.MatrixOperation
    product = layers.network.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE).get_output(0)
    return product if bias is None else layers.elementwise("SUM", product, bias)


def _embedding(layers: Layers, value: torch.Tensor, weight: Any, indices: Any, *_: Any) -> Any:
    return layers.network.add_gather(weight, indices, 0).get_output(0)


def _split(layers: Layers, value: Sequence[torch.Tensor], x: Any, sizes: Any, dim: int = 0) -> tuple[Any, ...]:
    """aten.chunk and aten.split_with_sizes: the results' shapes say where to cut."""
    results, start = [], 0
    dim %= len(x.shape)
    for part in value:
        results.append(layers.slice(x, dim, start, part.size(dim)))
        start += part.size(dim)
    return tuple(results)


def _getitem(layers: Layers, value: torch.Tensor, items: tuple[Any, ...], index: int) -> Any:
    return items[index]


def _cat(layers: Layers, value: torch.Tensor, tensors: Sequence[Any], dim: int = 0) -> Any:
    layer = layers.network.add_concatenation(list(tensors))
    layer.axis = dim % len(value.shape)
    return layer.get_output(0)


def _slice(layers: Layers, value: torch.Tensor, x: Any, dim: int = 0, start: Any = 0, end: Any = None, step: int = 1) -> Any:
    if step != 1:
        raise NotImplementedError(f"step {step}")
    size = x.shape[dim]
    start = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    return layers.slice(x, dim % len(x.shape), start, value.size(dim))


def _where(layers: Layers, value: torch.Tensor, condition: Any, yes: Any, no: Any) -> Any:
    yes, no = (layers.cast(x, value.dtype) if hasattr(x, "dtype") else x for x in (yes, no))
    return layers.select(condition, yes, no)


def _remainder(layers: Layers, value: torch.Tensor, x: Any, divisor: int) -> Any:
    """Of whole numbers by one above 0: the sign of the divisor, as in Python."""
    quotient = layers.elementwise("FLOOR_DIV", x, divisor)
    return layers.elementwise("SUB", x, layers.elementwise("PROD", quotient, divisor))


def _softmax(layers: Layers, value: torch.Tensor, x: Any, dim: int, dtype: torch.dtype | None = None) -> Any:
    layer = layers.network.add_softmax(layers.cast(x, value.dtype))
    layer.axes = 1 << (dim % len(value.shape))
    return layer.get_output(0)


def _sort(
    layers: Layers, value: Sequence[torch.Tensor], x: Any, *, stable: bool, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """A stable sort of rows [T, E], descending, by ranks: TensorRT's top-k says nothing of equal values.

    An element's rank is how many are larger, and how many of its equals come before it. E is the number of
    experts; T E E comparisons are few beside the experts' work.

    NaN is larger than nothing: several elements get one rank then, and their indices add up. What comes out means
    nothing, but kernels make addresses of it, so it is an index all the same.
    """
    rows, count = x.shape
    if not descending or dim % 2 != 1:
        raise NotImplementedError("only rows, descending")
    mine, others = layers.reshape(x, (rows, count, 1)), layers.reshape(x, (rows, 1, count))
    before = layers.constant(np.tril(np.ones((1, count, count), np.bool_), -1))
    tied = layers.elementwise("AND", layers.elementwise("EQUAL", others, mine), before)
    ahead = layers.elementwise("OR", layers.elementwise("GREATER", others, mine), tied)
    ranks = layers.reduce("SUM", layers.cast(ahead, torch.int32), 2)
    places = layers.constant(np.arange(count, dtype=np.int32).reshape(1, count, 1))
    here = layers.elementwise("EQUAL", layers.reshape(ranks, (rows, 1, count)), places)  # [T, place, element]
    values = layers.reduce("SUM", layers.select(here, others, 0.0), 2)
    numbers = layers.constant(np.arange(count, dtype=np.int32).reshape(1, 1, count))
    indices = layers.reduce("SUM", layers.select(here, numbers, 0), 2)
    return values, layers.cast(layers.elementwise("MIN", indices, count - 1), torch.int64)


def _argmax(layers: Layers, value: torch.Tensor, x: Any, dim: int, keepdim: bool = False) -> Any:
    """The lowest index of the largest value; the last index where NaN leaves none, since a gather reads there."""
    count = x.shape[dim]
    largest = layers.elementwise("EQUAL", x, layers.reduce("MAX", x, dim, keepdim=True))
    shape = [1] * len(x.shape)
    shape[dim] = count
    numbers = layers.constant(np.arange(count, dtype=np.int32).reshape(shape))
    lowest = layers.reduce("MIN", layers.select(largest, numbers, count), dim, keepdim)
    return layers.cast(layers.elementwise("MIN", lowest, count - 1), torch.int64)


def _logsumexp(layers: Layers, value: torch.Tensor, x: Any, dims: Sequence[int], keepdim: bool = False) -> Any:
    (dim,) = dims
    top = layers.reduce("MAX", x, dim, keepdim=True)
    total = layers.reduce("SUM", layers.unary("EXP", layers.elementwise("SUB", x, top)), dim, keepdim=True)
    return layers.reshape(layers.elementwise("SUM", layers.unary("LOG", total), top), value.shape)


def _gather(layers: Layers, value: torch.Tensor, x: Any, dim: int, indices: Any, **_: Any) -> Any:
    layer = layers.network.add_gather_v2(x, indices, layers.trt.GatherMode.ELEMENT)
    layer.axis = dim % len(x.shape)
    return layer.get_output(0)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: _binary("SUM"),
    aten.sub.Tensor: _binary("SUB"),
    aten.mul.Tensor: _binary("PROD"),
    aten.ge.Scalar: _compare("GREATER", "EQUAL"),
    aten.cos.default: _unary("COS"),
    aten.sin.default: _unary("SIN"),
    aten.square.default: _square,
    aten.rsqrt.default: _rsqrt,
    aten.mean.dim: _mean,
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    aten.to.dtype: _cast,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.chunk.default: _split,
    aten.split_with_sizes.default: _split,
    operator.getitem: _getitem,
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    aten.where.ScalarOther: _where,
    aten.where.self: _where,
    aten.remainder.Scalar: _remainder,
    aten.softmax.int: _softmax,
    aten.sort.stable: _sort,
    aten.argmax.default: _argmax,
    aten.logsumexp.default: _logsumexp,
    aten.gather.default: _gather,
}
