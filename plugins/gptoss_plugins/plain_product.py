"""Rows of a matrix of float numbers times a few vectors, on tensor cores.

Weights and vectors both come from memory through shared memory, as a product's operands do that are not computed. x is
in its natural order. Neither has padding: what is past the end of a row is not read and counts as 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plain_product(
    x,
    line,
    there,
    weight,
    row,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[R, M] float32: rows `row` [R] of a matrix [.., LENGTH] times lines [M] of x [.., STRIDE].

    Lines that are not `there` [M] are not read and count as 0. BLOCK elements of a row are taken at a time, a power of
    two. WIDE: x has 2^31 elements or more.
    """
    k = tl.arange(0, BLOCK)
    weight += row[:, None] * LENGTH + k[None, :]
    if WIDE:
        line = line.to(tl.int64)
    x += line[:, None] * STRIDE + k[None, :]
    acc = tl.zeros([row.shape[0], line.shape[0]], tl.float32)
    for start in range(0, LENGTH, BLOCK):
        if LENGTH % BLOCK == 0:
            weights = tl.load(weight + start)
            values = tl.load(x + start, mask=there[:, None], other=0.0)
        else:
            inside = (start + k < LENGTH)[None, :]
            weights = tl.load(weight + start, mask=inside, other=0.0)
            values = tl.load(x + start, mask=there[:, None] & inside, other=0.0)
        acc = tl.dot(weights, tl.trans(values), acc, input_precision=PRECISION)
    return acc
