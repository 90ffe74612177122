"""Aten nodes as TensorRT layers: the table of all that a segment may hold.

A converter takes the network's `Layers`, the value that torch's node has (a fake tensor, or several), and the node's
arguments with TensorRT's tensors in place of nodes. It returns a tensor, or a tuple of them. It raises ValueError or
NotImplementedError for arguments that it has no layers for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .layers import Layers, is_tensor

aten = torch.ops.aten


def _binary(operation: str) -> Callable[..., Any]:
    """A pointwise op of two operands, in the dtype that torch promotes them to.

    With a tensor of a 16-bit dtype a Python number is not rounded to that dtype: on a GPU torch computes in float32 and
    rounds the result.
    """

    def convert(layers: Layers, value: torch.Tensor, a: Any, b: Any, alpha: int = 1) -> Any:
        if alpha != 1:
            raise NotImplementedError(f"alpha {alpha}")
        number = not (is_tensor(a) and is_tensor(b))
        computed = torch.float32 if number and value.dtype in (torch.bfloat16, torch.float16) else value.dtype
        a, b = (layers.cast(x, computed) if is_tensor(x) else x for x in (a, b))
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
    return layers.output(layers.network.add_slice(x, [0] * rank, tuple(value.shape), strides))


def _square(layers: Layers, value: torch.Tensor, x: Any) -> Any:
    return layers.elementwise("PROD", x, x)


def _rsqrt(layers: Layers, value: torch.Tensor, x: Any) -> Any:
    return layers.unary("RECIP", layers.unary("SQRT", x))


def _mean(layers: Layers, value: torch.Tensor, x: Any, dims: Sequence[int], keepdim: bool = False) -> Any:
    (dim,) = dims
    return layers.reduce("AVG", x, dim, keepdim)


def _linear(layers: Layers, value: torch.Tensor, x: Any, weight: Any, bias: Any = None) -> Any:
    """x [T, K] by weight [N, K]; x of one row may have any rank.

    One row becomes a sum of products. TensorRT for RTX has slow kernels for matrix products of one row. It compiles the
    sum of products to a faster kernel, which sums in float32 (docs/experiments.md).
    """
    if value.numel() == value.size(-1):
        products = layers.elementwise("PROD", *(layers.cast(factor, torch.float32) for factor in (weight, x)))
        total = layers.reshape(layers.reduce("SUM", products, -1), value.shape)
        if bias is not None:
            total = layers.elementwise("SUM", total, layers.cast(bias, torch.float32))
        return layers.cast(total, value.dtype)
    operation = layers.trt.MatrixOperation
    product = layers.output(layers.network.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE))
    return product if bias is None else layers.elementwise("SUM", product, bias)


def _embedding(layers: Layers, value: torch.Tensor, weight: Any, indices: Any, *_: Any) -> Any:
    return layers.output(layers.network.add_gather(weight, indices, 0))


def _split(layers: Layers, value: Sequence[torch.Tensor], x: Any, sizes: Any, dim: int = 0) -> tuple[Any, ...]:
    """aten.chunk and aten.split_with_sizes. The shapes of the results say where each begins."""
    results, start = [], 0
    dim %= len(x.shape)
    for part in value:
        results.append(layers.slice(x, dim, start, part.size(dim)))
        start += part.size(dim)
    return tuple(results)


def _getitem(layers: Layers, value: torch.Tensor, items: tuple[Any, ...], index: int) -> Any:
    return items[index]


def _cat(layers: Layers, value: torch.Tensor, tensors: Sequence[Any], dim: int = 0) -> Any:
    return layers.output(layers.network.add_concatenation(list(tensors)), axis=dim % len(value.shape))


def _slice(
    layers: Layers, value: torch.Tensor, x: Any, dim: int = 0, start: Any = 0, end: Any = None, step: int = 1
) -> Any:
    if step != 1:
        raise NotImplementedError(f"step {step}")
    size = x.shape[dim]
    start = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    return layers.slice(x, dim % len(x.shape), start, value.size(dim))


def _where(layers: Layers, value: torch.Tensor, condition: Any, yes: Any, no: Any) -> Any:
    yes, no = (layers.cast(x, value.dtype) if is_tensor(x) else x for x in (yes, no))
    return layers.select(condition, yes, no)


def _remainder(layers: Layers, value: torch.Tensor, x: Any, divisor: int) -> Any:
    """Of whole numbers, by a divisor above 0: the result is not negative, as in Python."""
    quotient = layers.elementwise("FLOOR_DIV", x, divisor)
    return layers.elementwise("SUB", x, layers.elementwise("PROD", quotient, divisor))


def _softmax(layers: Layers, value: torch.Tensor, x: Any, dim: int, dtype: torch.dtype | None = None) -> Any:
    return layers.output(layers.network.add_softmax(layers.cast(x, value.dtype)), axes=1 << (dim % len(value.shape)))


def _sort(
    layers: Layers, value: Sequence[torch.Tensor], x: Any, *, stable: bool, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """A stable sort of rows [T, E], descending, by ranks. TensorRT's top-k has no order for equal values.

    The rank of an element is the number of larger elements, plus the number of equal elements before it. E is the
    number of experts, so T E E comparisons are little work compared with that of the experts.

    NaN is larger than nothing, so several elements of a row with NaN get one rank, and their indices add up. Such a
    result means nothing. Kernels still make addresses of it, so that it is limited to valid indices.
    """
    rows, count = x.shape
    if not descending or dim % 2 != 1:
        raise NotImplementedError("only rows, descending")
    element, others = layers.reshape(x, (rows, count, 1)), layers.reshape(x, (rows, 1, count))
    before = layers.constant(np.tril(np.ones((1, count, count), np.bool_), -1))
    equal_before = layers.elementwise("AND", layers.elementwise("EQUAL", others, element), before)
    precedes = layers.elementwise("OR", layers.elementwise("GREATER", others, element), equal_before)
    ranks = layers.reduce("SUM", layers.cast(precedes, torch.int32), 2)
    wanted = layers.constant(np.arange(count, dtype=np.int32).reshape(1, count, 1))
    has_rank = layers.elementwise("EQUAL", layers.reshape(ranks, (rows, 1, count)), wanted)  # [T, rank, element]
    values = layers.reduce("SUM", layers.select(has_rank, others, 0.0), 2)
    numbers = layers.constant(np.arange(count, dtype=np.int32).reshape(1, 1, count))
    indices = layers.reduce("SUM", layers.select(has_rank, numbers, 0), 2)
    return values, layers.cast(layers.elementwise("MIN", indices, count - 1), torch.int64)


def _argmax(layers: Layers, value: torch.Tensor, x: Any, dim: int, keepdim: bool = False) -> Any:
    """The lowest index of the largest value. With NaN there is none, and the result is the last index, which a gather
    can read."""
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
    return layers.output(layer, axis=dim % len(x.shape))


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
