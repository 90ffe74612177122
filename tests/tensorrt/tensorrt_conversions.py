"""One or more calls for each converter, and arguments for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensorrt_helpers import floats, integers

aten = torch.ops.aten
BF16 = torch.bfloat16


class Conversion(NamedTuple):
    """A function whose graph holds the op `target`; `arguments` give the shapes and dtypes of its call."""

    target: Any
    function: Callable[..., Any]
    arguments: tuple[torch.Tensor, ...]

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, item.shape)) for item in self.arguments)
        return f"{self.target}-{shapes}"


def _bf16(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(floats(*shape, dtype=BF16) for shape in shapes)


CONVERSIONS = [
    Conversion(aten.add.Tensor, lambda x, y: aten.add.Tensor(x, y), (floats(2, 3), floats(3, dtype=BF16))),
    Conversion(aten.sub.Tensor, lambda x: aten.sub.Tensor(x, 2.5), (floats(2, 3),)),
    Conversion(aten.mul.Tensor, lambda x, y: aten.mul.Tensor(x, y), (floats(4, 1, 3), floats(2, 1))),
    Conversion(aten.ge.Scalar, lambda x: aten.ge.Scalar(x, 1), (integers(5),)),
    Conversion(aten.cos.default, lambda x: aten.cos(x), (floats(2, 3),)),
    Conversion(aten.sin.default, lambda x: aten.sin(x), (floats(2, 3),)),
    Conversion(aten.square.default, lambda x: aten.square(x), (floats(2, 3),)),
    Conversion(aten.rsqrt.default, lambda x: aten.rsqrt(x), (floats(2, 3),)),
    Conversion(aten.mean.dim, lambda x: aten.mean.dim(x, [-1], True), (floats(2, 3),)),
    Conversion(aten.linear.default, lambda x, w, b: aten.linear(x, w, b), _bf16((2, 8), (3, 8), (3,))),
    Conversion(aten.linear.default, lambda x, w, b: aten.linear(x, w, b), _bf16((1, 8), (3, 8), (3,))),
    Conversion(aten.linear.default, lambda x, w: aten.linear(x, w), (floats(1, 8), floats(3, 8))),
    Conversion(aten.linear.default, lambda x, w: aten.linear(x, w), (floats(1, 1, 8), floats(3, 8))),
    Conversion(aten.linear.default, lambda x, w, b: aten.linear(x, w, b), (floats(8), floats(3, 8), floats(3))),
    Conversion(aten.mul.Tensor, lambda x: aten.mul.Tensor(x, 1.0037), (floats(5, dtype=BF16),)),
    Conversion(aten.embedding.default, lambda w, i: aten.embedding(w, i), (floats(9, 4, dtype=BF16), integers(3))),
    Conversion(aten.to.dtype, lambda x: aten.to.dtype(x, BF16), (floats(2, 3),)),
    Conversion(aten.view.default, lambda x: aten.view(x, [-1, 2]) + 1, (floats(2, 3),)),
    Conversion(aten._unsafe_view.default, lambda x: aten._unsafe_view(x, [3, 2]) + 1, (floats(2, 3),)),
    Conversion(aten.reshape.default, lambda x: aten.reshape(x, [6]) + 1, (floats(2, 3),)),
    Conversion(aten.flatten.using_ints, lambda x: aten.flatten(x) + 1, (floats(2, 3),)),
    Conversion(aten.unsqueeze.default, lambda x: aten.unsqueeze(x, 1) + 1, (floats(2, 3),)),
    Conversion(aten.squeeze.dim, lambda x: aten.squeeze.dim(x, -1) + 1, (floats(2, 1),)),
    Conversion(aten.alias.default, lambda x: aten.alias(x) + 1, (floats(2, 1),)),
    Conversion(aten.detach.default, lambda x: aten.detach(x) + 1, (floats(2, 1),)),
    Conversion(aten.clone.default, lambda x: aten.clone(x) + 1, (floats(2, 1),)),
    Conversion(aten.contiguous.default, lambda x: aten.contiguous(x[:, 1:]) + 1, (floats(2, 4),)),
    Conversion(aten.expand.default, lambda x: aten.expand(x, [4, 3]) + 1, (floats(1, 3),)),
    Conversion(aten.expand_as.default, lambda x, y: aten.expand_as(x, y) + y, (floats(2, 1), floats(2, 3))),
    Conversion(aten.chunk.default, lambda x: aten.chunk(x, 2, -1)[1] + 1, (floats(2, 6),)),
    Conversion(aten.split_with_sizes.default, lambda x: aten.split_with_sizes(x, [1, 3, 2], 1)[1] + 1, (floats(2, 6),)),
    Conversion(aten.cat.default, lambda x, y: aten.cat([x, y], -1), (floats(2, 3), floats(2, 1))),
    Conversion(aten.slice.Tensor, lambda x: aten.slice.Tensor(x, 1, 1, 9223372036854775807) + 1, (floats(2, 6),)),
    Conversion(
        aten.where.ScalarOther, lambda x, i: aten.where.ScalarOther(i >= 1, x, -1), (integers(2, 3), integers(2, 1))
    ),
    Conversion(
        aten.where.self, lambda x, y, i: aten.where.self(i >= 1, x, y), (floats(2, 3), floats(3), integers(2, 1))
    ),
    # Of 0, 1 and 2 makes -10, -1 and 8, so that a remainder is neither its operand nor of its operand's sign.
    Conversion(aten.remainder.Scalar, lambda x: aten.remainder.Scalar(x * 9 - 10, 7), (integers(5),)),
    Conversion(aten.softmax.int, lambda x: aten.softmax.int(x, -1), (floats(2, 5),)),
    Conversion(aten.sort.stable, lambda x: aten.sort.stable(x, stable=True, dim=-1, descending=True), (floats(3, 8),)),
    Conversion(aten.argmax.default, lambda x: aten.argmax(x, -1), (floats(3, 8),)),
    Conversion(aten.logsumexp.default, lambda x: aten.logsumexp(x, [-1]), (floats(3, 8),)),
    Conversion(aten.gather.default, lambda x, i: aten.gather(x, -1, i), (floats(3, 8), integers(3, 1))),
]


def drawn(conversion: Conversion) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Arguments of those shapes, and what torch makes of them.

    They have few different values, so that sort and argmax meet equal ones. Whole numbers are 0, 1 or 2.
    """
    generator = torch.Generator().manual_seed(0)
    arguments = [_draw(item, generator) for item in conversion.arguments]
    results = conversion.function(*arguments)
    return arguments, list(results) if isinstance(results, tuple | list) else [results]


def _draw(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.is_floating_point():
        return (torch.randint(1, 5, like.shape, generator=generator) / 2).to(like.dtype)
    return torch.randint(0, 3, like.shape, generator=generator)
